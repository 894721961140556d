package sandbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/agent"
	"github.com/matchlock/matchlock/internal/disk"
	"github.com/matchlock/matchlock/internal/logs"
	"github.com/matchlock/matchlock/internal/netstack"
	"github.com/matchlock/matchlock/internal/secret"
	"github.com/matchlock/matchlock/internal/state"
	"github.com/matchlock/matchlock/vm"
)

// Saved is a sandbox at one moment, its processes, their memory and its disk
// among it. Any number of sandboxes can go on from there, by Options.Restore, which
// several goroutines may call with it at once. It is files that are open, in memory for
// the most part, until Close; until then it takes as much of the host's memory as the
// guest has in use.
type Saved struct {
	record  savedRecord
	machine *vm.Snapshot
	// values are of its secrets. They go to a process that makes a copy at once, and
	// into no file.
	values map[string]secret.Value
}

// savedRecord is what of a Saved is not in its files.
type savedRecord struct {
	ID          string          `json:"id"`   // of the sandbox
	Name        string          `json:"name"` // its name then
	Taken       time.Time       `json:"taken"`
	ImageDigest string          `json:"image_digest"`
	Accel       string          `json:"accel,omitempty"` // that was asked for
	Config      api.Config      `json:"config"`
	Main        *savedMain      `json:"main,omitempty"` // nil: the first command did not run
	Network     *networkRecord  `json:"network,omitempty"`
	Disks       []diskMark      `json:"disks,omitempty"`  // that it was given, in the guest's order
	Places      []savedPlace    `json:"places,omitempty"` // of the host's files, likewise
	Requires    json.RawMessage `json:"requires,omitempty"`
	Imported    bool            `json:"imported,omitempty"` // from elsewhere
	Snapshot    string          `json:"snapshot,omitempty"` // its name, if it is one
}

// savedMain is a first command that runs.
type savedMain struct {
	Command uint64        `json:"command"` // its id in the guest
	Stdin   bool          `json:"stdin"`
	Tty     bool          `json:"tty"`
	Left    time.Duration `json:"left,omitempty"` // nanoseconds until it times out; 0: it does not
}

// Save copies the sandbox as it is at one moment. For that it stands still, some
// tens of milliseconds; it then goes on, with all its connections. One that is
// paused stays so. It is errors.ErrUnsupported of a sandbox that writes to a volume
// or a disk of the user's.
func (s *Sandbox) Save(ctx context.Context) (*Saved, error) { return s.keeper.save(ctx, refuseDisks) }

// SaveWithDisks is Save of any sandbox. What goes on from it has a copy of its own of
// each volume, and disk of the user's, that the sandbox writes to, which goes with it.
func (s *Sandbox) SaveWithDisks(ctx context.Context) (*Saved, error) {
	return s.keeper.save(ctx, copyDisks)
}

// diskCare says what becomes of the disks that a sandbox was given and writes to when
// it is saved.
type diskCare string

const (
	refuseDisks diskCare = ""
	keepDisks   diskCare = "keep" // what goes on has the same ones, and only while they are as they were
	copyDisks   diskCare = "copy"
)

// Fork makes n copies of the sandbox that go on from this moment, as Save and
// Options.Restore do. The caller is their supervisor, and they end with it; each is
// to be closed. All of them are made, or none. A sandbox that writes to a volume or a
// disk of the user's is errors.ErrUnsupported; SaveWithDisks and Restore copy that.
func (s *Sandbox) Fork(ctx context.Context, n int) ([]*Sandbox, error) {
	if n < 1 {
		return nil, fmt.Errorf("fork: %d copies", n)
	}
	saved, err := s.Save(ctx)
	if err != nil {
		return nil, err
	}
	defer saved.Close()
	o := s.keeper.maker()
	o.Name, o.Keep, o.NeedCommand = "", false, false
	copies, errs := make([]*Sandbox, n), make([]error, n)
	var making sync.WaitGroup
	turns := make(chan struct{}, ForksAtOnce())
	for i := range copies {
		turns <- struct{}{}
		making.Go(func() {
			defer func() { <-turns }()
			copies[i], errs[i] = o.Restore(ctx, saved, saved.Config())
		})
	}
	making.Wait()
	if err := errors.Join(errs...); err != nil {
		for _, c := range copies {
			if c != nil {
				err = errors.Join(err, c.Close())
			}
		}
		return nil, err
	}
	return copies, nil
}

// ForksAtOnce is how many copies Fork makes at the same time: one processor is left
// to the sandbox that is copied, and to those that have been made.
func ForksAtOnce() int { return max(1, runtime.NumCPU()-1) }

// Close closes the files. Sandboxes that go on from them need them no more.
func (s *Saved) Close() error { return s.machine.Close() }

// Config is what Options.Restore is given: the configuration of the sandbox that
// was saved, but for its first command, which goes on, and its hostname.
func (s *Saved) Config() api.Config {
	c := s.record.Config
	c.Entrypoint, c.Command, c.Hostname = nil, nil, ""
	c.Env, c.Labels = maps.Clone(c.Env), maps.Clone(c.Labels)
	c.Network.AddHosts = slices.Clone(c.Network.AddHosts)
	c.Network.Publish = slices.Clone(c.Network.Publish)
	c.Sockets = slices.Clone(c.Sockets)
	for i := range c.Network.Publish {
		c.Network.Publish[i].HostPort = 0 // the sandbox has that one
	}
	if s.values == nil { // a secret whose value is not given again has none
		c.Secrets, c.SecretIn = nil, nil
	}
	return c
}

// DropSecrets has what goes on from s begin without the values of secrets: requests
// with their placeholders are refused until they are given again.
func (s *Saved) DropSecrets() { s.values = nil }

// Running tells whether the first command runs in it.
func (s *Saved) Running() bool { return s.record.Main != nil }

// Files are the open files, for another process that goes on with them by
// OpenSaved. They stay s's.
func (s *Saved) Files() []*os.File {
	files := []*os.File{s.machine.Memory, s.machine.State}
	if len(s.record.Places) > 0 {
		files = append(files, s.machine.Files)
	}
	files = append(files, s.machine.Disk...)
	for i, mark := range s.record.Disks {
		if mark.Copied {
			files = append(files, s.machine.Extra[i])
		}
	}
	return files
}

// MarshalJSON is the other half of OpenSaved's.
func (s *Saved) MarshalJSON() ([]byte, error) {
	sent := sentSaved{savedRecord: s.record}
	if s.values != nil {
		sent.Values = make(map[string][]byte, len(s.values))
		for name, value := range s.values {
			sent.Values[name] = value.Reveal()
		}
	}
	return json.Marshal(sent)
}

// sentSaved is what one process tells another that goes on from a Saved.
type sentSaved struct {
	savedRecord
	Values map[string][]byte `json:"values,omitzero"` // of secrets; nil: they are not sent
}

// OpenSaved makes a Saved of what another process had, as JSON and as files, which
// are its own from then on. They are closed after an error too.
func OpenSaved(text []byte, files []*os.File) (*Saved, error) {
	s := &Saved{machine: &vm.Snapshot{}}
	var sent sentSaved
	err := json.Unmarshal(text, &sent)
	s.record = sent.savedRecord
	s.machine.Extra = make([]*os.File, len(s.record.Disks))
	rest := files
	for i, mark := range slices.Backward(s.record.Disks) {
		if n := len(rest); mark.Copied && n > 0 {
			s.machine.Extra[i], rest = rest[n-1], rest[:n-1]
		}
	}
	for i, f := range rest {
		switch {
		case i == 0:
			s.machine.Memory = f
		case i == 1:
			s.machine.State = f
		case i == 2 && len(s.record.Places) > 0:
			s.machine.Files = f
		default:
			s.machine.Disk = append(s.machine.Disk, f)
		}
	}
	if sent.Values != nil {
		s.values = make(map[string]secret.Value, len(sent.Values))
	}
	for name, bytes := range sent.Values {
		var fault error
		if s.values[name], fault = secret.NewValue(bytes); fault != nil {
			err = errors.Join(err, fault)
		}
	}
	if err == nil && len(s.machine.Disk) == 0 {
		err = fmt.Errorf("%d files", len(files))
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("saved sandbox: %w", err), s.Close())
	}
	s.machine.Requires = s.record.Requires
	return s, nil
}

// Restore makes a sandbox that goes on from where another was saved: with its
// processes, its memory and its disk, and a name, an id, a hostname, a clock and
// randomness of its own. The output of its commands goes to its log. config is
// s.Config, in which these may have changed: Command and Entrypoint, for a first
// command in the place of the one that goes on, which goes on too; Env, User,
// WorkDir and Timeout of commands to come; TTL, IdleTimeout and Restart; Hostname, Labels, and hosts that were
// added; all of Network but None, MTU and DNSMode; Sockets; Secrets; and which
// volumes or images are at the places of disks, whose content is as it was, or it is an
// error. What it acquires and
// what ctx bounds is as with New.
func (o Options) Restore(ctx context.Context, s *Saved, config api.Config) (*Sandbox, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	if err := s.allows(&config); err != nil {
		return nil, err
	}
	config, err := withWholePaths(config, s.record.Config.Mounts)
	if err != nil {
		return nil, err
	}
	if o.Accel == "" {
		o.Accel = s.record.Accel
	}
	added := config.Network.AddHosts[len(s.record.Config.Network.AddHosts):]
	origin := &origin{Saved: s, main: s.record.Main, hosts: added}
	if config.Command == nil && config.Entrypoint == nil {
		config.Command, config.Entrypoint = s.record.Config.Command, s.record.Config.Entrypoint
	} else {
		origin.main = nil
	}
	k := newSupervisor(o, config)
	k.origin = origin
	if err := k.start(ctx, nil); err != nil {
		return nil, errors.Join(err, k.close())
	}
	return sandboxOf(k.id, k), nil
}

// allows tells whether a sandbox that goes on from s can have a configuration.
func (s *Saved) allows(config *api.Config) error {
	want, have := *config, s.Config()
	hosts := s.record.Config.Network.AddHosts
	if n := len(hosts); len(want.Network.AddHosts) < n || !slices.Equal(want.Network.AddHosts[:n], hosts) {
		return errors.New("hosts: those of the saved sandbox stay")
	}
	for _, c := range []*api.Config{&want, &have} {
		c.Command, c.Entrypoint, c.Env, c.User, c.WorkDir, c.Timeout = nil, nil, nil, "", "", 0
		c.TTL, c.IdleTimeout, c.Restart = 0, 0, ""
		c.Hostname, c.Labels, c.Pull = "", nil, ""
		// What the guest's link and its files are stays; what passes may differ.
		c.Network = api.Network{None: c.Network.None, MTU: c.Network.MTU, DNSMode: c.Network.DNSMode}
		c.Sockets, c.Secrets, c.SecretIn = nil, nil, nil
		c.Disks, c.Mounts = nil, nil
	}
	if reflect.DeepEqual(want, have) {
		return errors.Join(s.checkDisks(config), s.checkMounts(config))
	}
	var differ []string
	w, h := reflect.ValueOf(want), reflect.ValueOf(have)
	for i := range w.NumField() {
		if !reflect.DeepEqual(w.Field(i).Interface(), h.Field(i).Interface()) {
			name, _, _ := strings.Cut(w.Type().Field(i).Tag.Get("json"), ",")
			differ = append(differ, name)
		}
	}
	return fmt.Errorf("a sandbox that goes on from another is what that was: %s cannot change", strings.Join(differ, ", "))
}

// checkDisks tells whether a configuration has a disk for each that the saved sandbox
// had. Whether they are as they were is looked at when they are opened.
func (s *Saved) checkDisks(config *api.Config) error {
	given := userDisks(state.Home{}, config)
	for _, mark := range s.record.Disks {
		i := slices.IndexFunc(given, func(d userDisk) bool { return d.mount == mark.Mount })
		switch {
		case i < 0:
			mode := ""
			if mark.ReadOnly {
				mode = ":ro"
			}
			return &hintError{fmt.Errorf("the saved sandbox has a disk at %s, and none is given", mark.Mount),
				fmt.Sprintf("--volume NAME:%s%s gives it a volume with the same content", mark.Mount, mode)}
		case given[i].readOnly != mark.ReadOnly:
			return fmt.Errorf("%s: whether it is written to cannot change", given[i])
		}
	}
	for _, d := range given {
		if !slices.ContainsFunc(s.record.Disks, func(m diskMark) bool { return m.Mount == d.mount }) {
			return fmt.Errorf("%s: a sandbox that goes on from another has no further disks", d)
		}
	}
	return nil
}

// copyPrefix begins the names of the files that are copies of disks.
const copyPrefix = "disk-"

// takeCopies makes the copies of disks that come with the origin disks of the
// sandbox's own: files in its folder.
func (s *supervisor) takeCopies() error {
	s.config.Disks, s.config.Mounts = slices.Clone(s.config.Disks), slices.Clone(s.config.Mounts)
	for i, mark := range s.origin.record.Disks {
		if !mark.Copied {
			continue
		}
		file := s.dir.Path(copyPrefix + strconv.Itoa(i) + volumeSuffix)
		if err := copyImage(file, s.origin.machine.Extra[i]); err != nil {
			return fmt.Errorf("copy of the disk at %s: %w", mark.Mount, err)
		}
		s.config.Mounts = slices.DeleteFunc(s.config.Mounts, func(m api.Mount) bool { return m.IsVolume() && path.Clean(m.Target) == mark.Mount })
		s.config.Disks = slices.DeleteFunc(s.config.Disks, func(d api.Disk) bool { return path.Clean(d.Mount) == mark.Mount })
		s.config.Disks = append(s.config.Disks, api.Disk{File: file, Mount: mark.Mount})
	}
	return nil
}

func copyImage(path string, from *os.File) error {
	to, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(disk.CopySparse(to, from), to.Close())
}

// checkMounts tells whether what is mounted can be: at the places that the guest has,
// and as it has them.
func (s *Saved) checkMounts(config *api.Config) error {
	var errs []error
	for _, m := range withoutVolumes(config.Mounts) {
		at := slices.IndexFunc(s.record.Places, func(p savedPlace) bool { return p.Target == path.Clean(m.Target) })
		switch {
		case at < 0:
			errs = append(errs, fmt.Errorf("mount at %s: the saved sandbox has none there, and cannot be given one", m.Target))
		case s.record.Places[at].Mode != m.Mode:
			errs = append(errs, fmt.Errorf("mount at %s: it is %s in the saved sandbox, and cannot be %s", m.Target, s.record.Places[at].Mode, m.Mode))
		}
	}
	return errors.Join(errs...)
}

// origin is what a supervisor's sandbox goes on from.
type origin struct {
	*Saved
	main  *savedMain          // the first command that goes on as that; nil: none
	hosts []api.HostIPMapping // that were added
}

// madeFrom says what a new sandbox is made of.
func (s *supervisor) madeFrom() string {
	if s.origin != nil {
		return s.origin.String()
	}
	return "image " + s.config.Image
}

// String names where a sandbox goes on.
func (s *Saved) String() string {
	r := s.record
	moment := fmt.Sprintf("sandbox %s (%s), as it was at %s", r.Name, r.ID, r.Taken.UTC().Format(time.RFC3339))
	if r.Snapshot != "" {
		return fmt.Sprintf("snapshot %s of %s", r.Snapshot, moment)
	}
	return moment
}

func (s *supervisor) maker() Options { return s.options }

// save makes a Saved of the sandbox.
func (s *supervisor) save(ctx context.Context, care diskCare) (*Saved, error) {
	m, ok := s.guest().(vm.Snapshotter)
	if !ok {
		return nil, fmt.Errorf("snapshot: %w", errors.ErrUnsupported)
	}
	record := s.dir.Record()
	if care == refuseDisks {
		if i := slices.IndexFunc(s.disks, func(d heldDisk) bool { return !d.readOnly }); i >= 0 {
			return nil, &hintError{fmt.Errorf("sandbox %q: it writes to %s, which a copy of it would too: %w", record.Name, s.disks[i], errors.ErrUnsupported),
				"`matchlock fork --volumes copy` copies that as well; one that it only reads, with :ro, is no obstacle"}
		}
	}
	saved := &Saved{record: savedRecord{
		ID: record.ID, Name: record.Name, Taken: time.Now(), ImageDigest: record.ImageDigest, Accel: record.Accel,
		Main: s.savedMain(), Places: s.files.places(),
	}}
	var files *os.File
	defer func() {
		if files != nil {
			files.Close()
		}
	}()
	var before []netstack.Connection
	if s.network != nil {
		before = s.network.stack.Connections()
	}
	s.mu.Lock()
	saved.record.Config = s.config // the rules of now
	s.mu.Unlock()
	var err error
	saved.machine, err = m.Snapshot(ctx, vm.SnapshotOptions{
		CopyDisks: care == copyDisks,
		Still: func() (err error) {
			if err := saved.markDisks(s.disks, care); err != nil || s.files == nil {
				return err
			}
			if files, err = s.dir.Temporary(); err != nil {
				return err
			}
			return s.files.save(files)
		},
	})
	if err != nil {
		return nil, fmt.Errorf("sandbox %q: %w", record.Name, s.explain(ctx, err))
	}
	saved.machine.Files, files = files, nil
	saved.record.Requires = saved.machine.Requires
	if s.network != nil {
		// The names, too, that the guest was told of until then.
		r, err := s.network.record(true)
		if err != nil {
			return nil, errors.Join(err, saved.Close())
		}
		r.Connections = union(before, s.network.stack.Connections())
		saved.record.Network, saved.values = &r, s.network.revealed()
	}
	s.tell(api.LifeCopied, "", nil)
	return saved, nil
}

// markDisks notes what the disks are while the machine stands still.
func (s *Saved) markDisks(disks []heldDisk, care diskCare) error {
	for i := range disks {
		mark, err := disks[i].mark()
		if err != nil {
			return err
		}
		mark.Copied = care == copyDisks && !mark.ReadOnly
		s.record.Disks = append(s.record.Disks, mark)
	}
	return nil
}

// union is what there was at either of two moments, and so all that there was
// between them but for what came and went.
func union(before, after []netstack.Connection) []netstack.Connection {
	all := map[netstack.Connection]bool{}
	for _, c := range slices.Concat(before, after) {
		all[c] = true
	}
	return slices.Collect(maps.Keys(all))
}

func (s *supervisor) savedMain() *savedMain {
	m := s.first()
	if m == nil {
		return nil
	}
	main := &savedMain{Command: m.session.(*agent.Session).ID(), Stdin: m.input != nil, Tty: m.tty}
	if m.timeout > 0 {
		still, _ := s.stoodStill(context.Background())
		main.Left = max(m.timeout-(time.Since(m.started)-(still-m.still)), 1)
	}
	return main
}

// goOn takes hold of the commands that run in a sandbox that goes on from another.
func (s *supervisor) goOn(ctx context.Context) error {
	// Others wait until the start is over.
	sb := &Sandbox{s.id, s, agent.NewClient(s.guest().Dial)}
	running, err := sb.client.Commands(ctx)
	if err != nil {
		return fmt.Errorf("the commands that run: %w", err)
	}
	fmt.Fprintln(s.output.Stream(logs.Own), "goes on from", s.origin)
	main := s.origin.main
	for _, r := range running {
		c := sb.Command(context.Background(), "")
		c.resume, c.Tty = &r, r.TTY
		if main == nil || r.ID != main.Command {
			out := s.output.Stream(backgroundStream)
			c.Stdout, c.Stderr = out, out
			if err := c.Start(); err != nil {
				return fmt.Errorf("a command that runs: %w", err)
			}
			go c.Wait() // nobody asks how it ended
			continue
		}
		c.Args, c.main, c.Timeout = s.proc.Argv, true, main.Left
		c.OpenStdin = main.Stdin && r.Stdin
		if err := c.Start(); err != nil {
			return fmt.Errorf("the first command: %w", err)
		}
		main = nil
	}
	if main != nil { // it ended while it was saved
		s.mu.Lock()
		s.main = endedCommand()
		s.mu.Unlock()
	}
	s.proc.Timeout = 0 // the first command's runs
	return nil
}

// endedCommand is a first command of which it is not known how it ended.
func endedCommand() *firstCommand {
	m := &firstCommand{failure: "it ended when its sandbox was saved"}
	m.exit.Code = statusUnknown
	m.over, m.end = context.WithCancel(context.Background())
	m.end()
	m.session = &watchedSession{done: m.over.Done(), exit: agent.Exit{Code: statusUnknown}}
	return m
}

// holdMain takes hold of the first command that goes on, for the program whose
// sandbox it is.
func (s *supervisor) holdMain(ctx context.Context, c *Cmd) (session, error) {
	if c.Stdin == nil && c.Stdout == nil && c.Stderr == nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.main.session, nil
	}
	home, err := s.options.home()
	if err != nil {
		return nil, err
	}
	return newRemote(s.options, home, entryOf(s.dir)).startMain(ctx, c) // the log is the way to its output
}

// entryOf is a sandbox of this process as others see it.
func entryOf(dir *state.Dir) state.Entry {
	return state.Entry{Record: dir.Record(), Path: dir.Path()}
}
