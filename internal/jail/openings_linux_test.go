package jail

import (
	"fmt"
	"os"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Signals, as Go's runtime sends them to itself to share out its threads, end no wait for
// what the program opens: it would stand still for ever.
func TestOpeningsInterrupted(t *testing.T) {
	stop := make(chan struct{})
	var interrupting sync.WaitGroup
	defer interrupting.Wait()
	defer close(stop)
	interrupting.Go(func() {
		for {
			threads, _ := os.ReadDir("/proc/self/task")
			for _, thread := range threads {
				tid, _ := strconv.Atoi(thread.Name())
				unix.Tgkill(os.Getpid(), tid, unix.SIGURG) // one that has ended has none
			}
			select {
			case <-stop:
				return
			default:
			}
		}
	})
	for deadline := time.Now().Add(time.Second); time.Now().Before(deadline); {
		listener, program, err := os.Pipe() // the program opens nothing yet
		if err != nil {
			t.Fatal(err)
		}
		o := serveOpenings(listener, os.Getpid(), nil)
		ended := make(chan struct{})
		go func() {
			o.done.Wait()
			close(ended)
		}()
		select {
		case <-ended:
			t.Error("a signal has ended it")
			deadline = time.Now()
		case <-time.After(time.Millisecond):
		}
		o.close()
		<-ended
		program.Close()
	}
}

// The path is the program's, which may be hostile by then.
func FuzzDescriptorOf(f *testing.F) {
	for _, name := range []string{"/proc/self/fd/3", "/proc/self/fd/", "/proc/self/fd/-1", "/proc/self/fd/3/../4", "/proc/self/fd/4294967299", "/etc/passwd", ""} {
		f.Add(name)
	}
	f.Fuzz(func(t *testing.T, name string) {
		fd, ok := descriptorOf(name)
		if ok && (fd < 0 || fd > 1<<31-1) {
			t.Errorf("%q is descriptor %d", name, fd)
		}
		if want := fmt.Sprintf("%s/%d", descriptors, fd); ok && len(name) == len(want) && name != want {
			t.Errorf("%q is taken for %s", name, want)
		}
	})
}
