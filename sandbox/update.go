package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/state"
)

// Change says what of a sandbox is to be another. What is nil stays.
type Change struct {
	// Labels are added, or take the place of those of their names; DropLabels are the
	// names of labels that go.
	Labels     map[string]string `json:"labels,omitempty"`
	DropLabels []string          `json:"drop_labels,omitempty"`
	// TTL is counted from the last start on, IdleTimeout from the change on; 0 lifts them.
	TTL         *time.Duration `json:"ttl,omitempty"` // in nanoseconds, as the next
	IdleTimeout *time.Duration `json:"idle_timeout,omitempty"`
	// Restart is the policy from the next end on.
	Restart *api.RestartPolicy `json:"restart,omitempty"`
	// CPUs, and Memory in bytes, are those of machines to come: of a sandbox that runs,
	// they are ErrRunning.
	CPUs   *float64 `json:"cpus,omitempty"`
	Memory *int64   `json:"memory,omitempty"`
}

// machine tells whether it changes what a machine is made with.
func (c *Change) machine() bool { return c.CPUs != nil || c.Memory != nil }

// apply returns what becomes of a configuration.
func (c *Change) apply(config api.Config, autoRemove bool) (api.Config, error) {
	if c.Restart != nil && autoRemove && c.Restart.Wants(1, 0) {
		return config, errors.New("restart policy: the sandbox is removed at its end")
	}
	labels := maps.Clone(config.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	maps.DeleteFunc(labels, func(name, _ string) bool { return slices.Contains(c.DropLabels, name) })
	maps.Copy(labels, c.Labels)
	config.Labels = labels
	set(&config.TTL, c.TTL)
	set(&config.IdleTimeout, c.IdleTimeout)
	set(&config.Restart, c.Restart)
	set(&config.CPUs, c.CPUs)
	set(&config.Memory, c.Memory)
	return config, errors.Join(config.Validate(), fitsHost(&config))
}

func set[T any](field, value *T) {
	if value != nil {
		*field = *value
	}
}

// Update changes a sandbox, running or not: all that is asked for, or nothing.
func (o Options) Update(ctx context.Context, ref string, c Change) error {
	home, e, err := o.locate(ref)
	if err != nil {
		return err
	}
	if e.Status.Alive() && !e.Ending() {
		return newRemote(o, home, e).call(ctx, methodUpdate, c, nil)
	}
	dir, err := openStopped(ctx, home, e.ID)
	if err != nil {
		return err
	}
	err = c.applyTo(dir)
	if err == nil {
		o.tell(home, dir.Record().Info, api.LifeUpdated, "")
	}
	return errors.Join(err, dir.Close())
}

// applyTo changes a sandbox that does not run.
func (c *Change) applyTo(dir *state.Dir) error {
	var config api.Config
	if err := hostfs.ReadRecord(dir.Path(configName), &config); err != nil {
		return fmt.Errorf("sandbox %q: its configuration: %w", dir.Record().Name, err)
	}
	config, err := c.apply(config, dir.Record().AutoRemove)
	if err == nil {
		err = hostfs.WriteRecord(dir.Path(configName), &config)
	}
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", dir.Record().Name, err)
	}
	return dir.Update(func(r *state.Record) { r.Labels = config.Labels })
}

// update changes a sandbox that runs.
func (s *supervisor) update(_ context.Context, c Change) error {
	name := s.dir.Record().Name
	if c.machine() {
		return &hintError{&stateError{name, "is running, with the processors and the memory that it was started with", ErrRunning},
			fmt.Sprintf("`matchlock stop %s` first; what is written to its disk stays", name)}
	}
	err := s.keepConfig(func(config *api.Config) (err error) {
		*config, err = c.apply(*config, s.dir.Record().AutoRemove)
		return err
	})
	if err != nil {
		return fmt.Errorf("sandbox %q: %w", name, err)
	}
	select {
	case s.limitsChange <- struct{}{}:
	default: // one that was not looked at yet
	}
	err = s.keepLabels()
	s.tell(api.LifeUpdated, "", nil)
	return err
}

// keepLabels has the record say what the configuration does.
func (s *supervisor) keepLabels() error {
	s.keeping.Lock()
	defer s.keeping.Unlock()
	s.mu.Lock()
	labels := s.config.Labels
	s.mu.Unlock()
	return s.dir.Update(func(r *state.Record) { r.Labels = labels })
}

// keepConfig changes the configuration, for copies and the next start too. With an error of
// change it stays as it was.
func (s *supervisor) keepConfig(change func(*api.Config) error) error {
	s.keeping.Lock() // until it is written: of two changes at once the last is kept
	defer s.keeping.Unlock()
	s.mu.Lock()
	config := s.config
	err := change(&config)
	if err == nil {
		s.config = config
	}
	s.mu.Unlock()
	if err != nil {
		return err
	}
	return hostfs.WriteRecord(s.dir.Path(configName), &config)
}
