package sandbox

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/agent"
)

// guestPatience is how long the guest may take to say how it is.
const guestPatience = 3 * time.Second

// Usage tells what the sandbox takes of the host. To ask is no use in the sense of
// api.Config.IdleTimeout.
func (s *Sandbox) Usage(ctx context.Context) (api.Usage, error) { return s.keeper.usage(ctx) }

func (s *supervisor) usage(ctx context.Context) (api.Usage, error) {
	record := s.dir.Record()
	u := api.Usage{ID: s.id, Name: record.Name, Time: time.Now(), Disk: roomOf(s.dir.Path())}
	if m := s.guest(); m != nil && m.PID() != 0 {
		var err error
		if u.CPU, u.Memory, err = processUsage(m.PID()); err != nil {
			return u, fmt.Errorf("sandbox %q: its machine: %w", record.Name, err)
		}
	}
	if s.network != nil && s.network.stack != nil {
		stats := s.network.stack.Stats()
		u.Sent, u.Received, u.Flows = int64(stats.Sent), int64(stats.Received), stats.Flows
	}
	if _, paused := s.stoodStill(ctx); paused {
		return u, nil
	}
	ctx, cancel := context.WithTimeout(ctx, guestPatience)
	defer cancel()
	if text, err := newFS(ctx, agent.NewClient(s.connect)).ReadFile("proc/meminfo"); err == nil { // else it does not answer
		total, available := memoryIn(string(text))
		u.GuestTotal, u.GuestMemory = max(total, 0), max(total-available, 0)
	}
	return u, nil
}

func (r *remote) usage(ctx context.Context) (u api.Usage, err error) {
	return u, r.call(ctx, methodUsage, nil, &u)
}

const (
	maxProcesses    = 10_000
	processesAtOnce = 8
	guestTicks      = 100 // a second: USER_HZ of every Linux that we run
	guestPage       = 4096
	kernelThreads   = 2 // the parent of those
)

// Processes lists the guest's processes but for the kernel's, by their numbers.
func (s *Sandbox) Processes(ctx context.Context) ([]api.Process, error) {
	files := s.FS(ctx)
	entries, err := files.ReadDir("proc")
	if err != nil {
		return nil, err
	}
	users := usersOf(files)
	var mu sync.Mutex
	var all []api.Process
	var failed []error
	var looking sync.WaitGroup
	turns := make(chan struct{}, processesAtOnce)
	for _, entry := range entries[:min(len(entries), maxProcesses)] {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || !entry.IsDir() {
			continue
		}
		turns <- struct{}{}
		looking.Go(func() {
			defer func() { <-turns }()
			p, err := processOfGuest(files, pid, users)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ESRCH): // it has ended since
			case err != nil:
				failed = append(failed, err)
			case p.PID != kernelThreads && p.Parent != kernelThreads:
				all = append(all, p)
			}
		})
	}
	looking.Wait()
	if len(all) == 0 {
		return nil, errors.Join(failed...)
	}
	slices.SortFunc(all, func(a, b api.Process) int { return cmp.Compare(a.PID, b.PID) })
	return all, nil
}

// processOfGuest reads what proc_pid_stat(5) has.
func processOfGuest(files *FS, pid int, users map[string]string) (api.Process, error) {
	p := api.Process{PID: pid}
	folder := "proc/" + strconv.Itoa(pid)
	text, err := files.ReadFile(folder + "/stat")
	if err != nil {
		return p, err
	}
	// A name may have anything in it.
	begin, end := bytes.IndexByte(text, '('), bytes.LastIndexByte(text, ')')
	if begin < 0 || end < begin {
		return p, fmt.Errorf("process %d: its stat is %.40q", pid, text)
	}
	fields := strings.Fields(string(text[end+1:]))
	if len(fields) < 22 {
		return p, fmt.Errorf("process %d: its stat has %d fields", pid, len(fields))
	}
	number := func(i int) int64 {
		n, _ := strconv.ParseInt(fields[i], 10, 64)
		return n
	}
	p.State, p.Parent = fields[0], int(number(1))
	p.CPU = time.Duration(number(11)+number(12)) * time.Second / guestTicks
	p.Memory = number(21) * guestPage
	if p.Parent == kernelThreads {
		return p, nil
	}
	line, err := files.ReadFile(folder + "/cmdline")
	if err != nil {
		return p, err
	}
	p.Command = strings.TrimSpace(strings.ReplaceAll(string(line), "\x00", " "))
	if p.Command == "" {
		p.Command = "[" + string(text[begin+1:end]) + "]"
	}
	status, err := files.ReadFile(folder + "/status")
	if err != nil {
		return p, err
	}
	_, after, _ := strings.Cut(string(status), "\nUid:")
	if ids := strings.Fields(after); len(ids) > 1 {
		p.User = cmp.Or(users[ids[1]], ids[1])
	}
	return p, nil
}

// usersOf are the names of the guest's users by their numbers.
func usersOf(files *FS) map[string]string {
	users := map[string]string{}
	text, err := files.ReadFile("etc/passwd")
	if err != nil {
		return users // an image may have none
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Split(line, ":"); len(fields) > 2 && users[fields[2]] == "" {
			users[fields[2]] = fields[0]
		}
	}
	return users
}
