package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/hostfs"
	"github.com/matchlock/matchlock/internal/secret"
)

const (
	maxSecret     = 64 << 10
	secretTimeout = 30 * time.Second // of a command that prints one
)

// readSecrets reads the values of all secrets, but for those that are given. A
// placeholder that the guest has been told of, of a secret that there is no more,
// is one without a value: nothing passes that has it.
func (n *network) readSecrets(ctx context.Context, given map[string]secret.Value) ([]secret.Secret, error) {
	var all []secret.Secret
	bound := map[string]bool{}
	places := map[string]secret.Places{}
	for _, p := range n.config.SecretIn {
		places[p.Name] = secret.Places{Query: p.Query, Path: p.Path, Body: p.Body}
	}
	for _, s := range n.config.Secrets {
		value, ok := given[s.Name]
		if !ok {
			var err error
			if value, err = readSecret(ctx, s); err != nil {
				return nil, fmt.Errorf("secret %q: %w", s.Name, err)
			}
		}
		if n.placeholders[s.Name] == "" {
			n.placeholders[s.Name] = secret.NewPlaceholder()
		}
		bound[s.Name], n.values[s.Name] = true, value
		all = append(all, secret.Secret{
			Name: s.Name, Placeholder: n.placeholders[s.Name], Value: value, Hosts: n.policy.Scope(s.Name), Places: places[s.Name],
		})
	}
	for name, placeholder := range n.placeholders {
		if !bound[name] {
			all = append(all, secret.Secret{Name: name, Placeholder: placeholder, Hosts: func(string) bool { return false }})
		}
	}
	return all, nil
}

// readSecret reads a value from where it is kept.
func readSecret(ctx context.Context, s api.Secret) (secret.Value, error) {
	var text []byte
	switch s.Source {
	case "", api.SecretEnv:
		name := s.Where
		if s.Source == "" {
			name = s.Name
		}
		value, ok := os.LookupEnv(name)
		if !ok {
			return secret.Value{}, &hintError{fmt.Errorf("the environment has no variable %s", name), fmt.Sprintf("set %s, or have the value come from a file or a command: see --help", name)}
		}
		return secret.NewValue([]byte(value))
	case api.SecretFile:
		var err error
		if text, err = hostfs.ReadLimited(s.Where, maxSecret+2); err != nil {
			return secret.Value{}, err
		}
	case api.SecretCommand:
		ctx, cancel := context.WithTimeoutCause(ctx, secretTimeout, fmt.Errorf("its command took more than %v", secretTimeout))
		defer cancel()
		cmd := exec.CommandContext(ctx, "/bin/sh", "-c", s.Where)
		cmd.Stderr = os.Stderr // it may want to say what is wrong
		cmd.WaitDelay = time.Second
		out := &limitedBuffer{limit: maxSecret + 2}
		cmd.Stdout = out
		if err := cmd.Run(); err != nil {
			if ctx.Err() != nil {
				err = context.Cause(ctx)
			}
			return secret.Value{}, fmt.Errorf("its command: %w", err)
		}
		text = out.Bytes()
	default:
		return secret.Value{}, fmt.Errorf("source %q: neither env, file nor cmd", s.Source)
	}
	text = bytes.TrimSuffix(bytes.TrimSuffix(text, []byte("\n")), []byte("\r"))
	return secret.NewValue(text)
}

// placeholderEnv is what the guest's environment says of the secrets.
func (n *network) placeholderEnv() map[string]string {
	env := make(map[string]string, len(n.config.Secrets))
	for _, s := range n.config.Secrets {
		env[s.Name] = n.placeholders[s.Name]
	}
	return env
}

// secretChange says what becomes of a secret.
type secretChange struct {
	Name   string `json:"name"`
	Revoke bool   `json:"revoke,omitempty"`
	// Value is the new one. It goes by the socket alone, which no other user reads.
	Value []byte `json:"value,omitempty"`
}

// Secrets are those of a sandbox that runs. Several goroutines and processes may change
// them at once.
type Secrets struct{ keeper keeper }

// Secrets returns those of the sandbox.
func (s *Sandbox) Secrets() Secrets { return Secrets{s.keeper} }

// Rotate gives a secret another value, of 12 bytes or more, which holds at once. The
// former one is still taken out of responses. A name that there is not is
// ErrNotFound.
func (s Secrets) Rotate(ctx context.Context, name string, value []byte) error {
	if _, err := secret.NewValue(value); err != nil {
		return fmt.Errorf("secret %q: %w", name, err)
	}
	return s.keeper.changeSecret(ctx, secretChange{Name: name, Value: value})
}

// RotateFrom is Rotate with a value that is read from where a secret's source says.
func (s Secrets) RotateFrom(ctx context.Context, from api.Secret) error {
	value, err := readSecret(ctx, from)
	if err != nil {
		return fmt.Errorf("secret %q: %w", from.Name, err)
	}
	return s.keeper.changeSecret(ctx, secretChange{Name: from.Name, Value: value.Reveal()})
}

// Revoke takes a secret's value away: requests that have its placeholder are refused
// from now on.
func (s Secrets) Revoke(ctx context.Context, name string) error {
	return s.keeper.changeSecret(ctx, secretChange{Name: name, Revoke: true})
}

func (s *supervisor) changeSecret(_ context.Context, c secretChange) error {
	if s.network == nil {
		return s.noNetwork()
	}
	if c.Revoke {
		if err := s.network.revoke(c.Name); err != nil {
			return err
		}
		return s.keepRules()
	}
	return s.network.rotate(c.Name, c.Value)
}

// checkSecret tells whether there is a secret. n is locked.
func (n *network) checkSecret(name string) error {
	if slices.ContainsFunc(n.config.Secrets, func(s api.Secret) bool { return s.Name == name }) {
		return nil
	}
	return fmt.Errorf("secret %q: %w", name, ErrNotFound)
}

func (n *network) rotate(name string, value []byte) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.checkSecret(name); err != nil {
		return err
	}
	v, err := secret.NewValue(value)
	if err == nil {
		err = n.secrets.Rotate(name, v)
	}
	if err != nil {
		return fmt.Errorf("secret %q: %w", name, err)
	}
	n.values[name] = v
	n.events.add(api.Event{Kind: api.EventPolicy, Verdict: api.Allowed, Reason: "secret " + name + " rotated"})
	return nil
}

// revoke leaves no secret that a copy, or the next start, would read again.
func (n *network) revoke(name string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.checkSecret(name); err != nil {
		return err
	}
	if err := n.secrets.Revoke(name); err != nil {
		return err
	}
	delete(n.values, name)
	n.config.Secrets = slices.DeleteFunc(slices.Clone(n.config.Secrets), func(s api.Secret) bool { return s.Name == name })
	n.config.SecretIn = slices.DeleteFunc(slices.Clone(n.config.SecretIn), func(p api.SecretPlaces) bool { return p.Name == name })
	n.events.add(api.Event{Kind: api.EventPolicy, Verdict: api.Allowed, Reason: "secret " + name + " revoked"})
	return nil
}
