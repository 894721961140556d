package state

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/matchlock/matchlock/api"
)

func lifeEvent(name string) api.Event {
	return api.Event{Kind: api.EventLife, Action: api.LifeStarted, Sandbox: &api.EventSandbox{ID: "abcdefghijkl", Name: name}}
}

// TestJournal has many write at once, while one reads, through several rotations. Nothing of
// what the last two files hold is lost, torn or out of order.
func TestJournal(t *testing.T) {
	j := Journal{filepath.Join(t.TempDir(), "events.jsonl")}
	const writers, each = 8, 600
	padding := strings.Repeat("x", 4<<10) // makes 19 MB: four rotations
	read := make(chan map[string]int)
	go func() {
		last := map[string]int{}
		err := j.Read(t.Context(), true, func(e api.Event) error {
			if e.Sandbox.Name == "the end" {
				return errDone
			}
			var n int
			if _, err := fmt.Sscan(e.Reason, &n); err != nil || n <= last[e.Sandbox.Name] || len(e.Method) != len(padding) {
				t.Errorf("event %q of %q after %d", e.Reason, e.Sandbox.Name, last[e.Sandbox.Name])
			}
			last[e.Sandbox.Name] = n
			return nil
		})
		if err != errDone {
			t.Errorf("Read = %v", err)
		}
		read <- last
	}()
	var all sync.WaitGroup
	for w := range writers {
		all.Go(func() {
			for n := range each {
				e := lifeEvent(fmt.Sprint("writer", w))
				e.Reason, e.Method = fmt.Sprint(n+1), padding
				if err := j.Append(e); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	// One that comes now reads to the end, and no more than there is room for.
	final := lifeEvent("the end")
	final.Reason, final.Method = "1", padding
	if err := j.Append(final); err != nil {
		t.Fatal(err)
	}
	var last string
	count := 0
	err := j.Read(t.Context(), false, func(e api.Event) error {
		last, count = e.Sandbox.Name, count+1
		return nil
	})
	if err != nil || last != "the end" {
		t.Fatalf("the last event is %q, %v", last, err)
	}
	if most := 2*maxJournal/len(padding) + 2*writers; count > most || count == 0 {
		t.Errorf("%d events are kept, at most %d can be", count, most)
	}
	if got := <-read; len(got) == 0 {
		t.Error("nothing was read while it was written")
	}
}

var errDone = errors.New("done")

// TestJournalDamaged reads over what is no event, and an event too long for a line of the
// journal does without its labels.
func TestJournalDamaged(t *testing.T) {
	j := Journal{filepath.Join(t.TempDir(), "events.jsonl")}
	long := lifeEvent("long")
	long.Sandbox.Labels = map[string]string{"label": strings.Repeat("x", 2*maxEntry)}
	damage := func(text string) error {
		file, err := os.OpenFile(j.Path, os.O_APPEND|os.O_WRONLY|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		_, err = file.WriteString(text)
		return errors.Join(err, file.Close())
	}
	for _, err := range []error{
		damage("{\"kind\":\"li\n{}\n\x00\x00\n" + strings.Repeat("y", 3*maxEntry) + "\n"),
		j.Append(lifeEvent("one")), j.Append(long), damage("{\"kind\":"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	var names []string
	err := j.Read(t.Context(), false, func(e api.Event) error {
		names = append(names, e.Sandbox.Name)
		return nil
	})
	if err != nil || strings.Join(names, " ") != "one long" {
		t.Errorf("read %q, %v", names, err)
	}
}
