package secret

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
)

// A Set is all secrets of a sandbox. Any number of goroutines may use it.
type Set struct {
	secrets []Secret // as given; the values that count are in the state
	bodies  *matcher // for placeholders, in any text
	names   *matcher // for placeholders in names of headers, which have no case

	change sync.Mutex // held while a new state is made
	state  atomic.Pointer[values]
}

// values is what changes of a Set. Immutable but for what is derived of it.
type values struct {
	bound     []bound  // by the index of the secret
	redactors sync.Map // of Scope.in to func() *matcher: they are made when a scope first needs them
}

// bound is what a secret's placeholder has stood for.
type bound struct {
	value   Value // zero: nothing now
	old     []Value
	revoked bool
}

// NewSet returns the set of the secrets. It refuses two of one name or placeholder, one without a name or scope, a
// placeholder that NewPlaceholder cannot have made, and a value with a placeholder in it. Its errors hold no values.
func NewSet(secrets []Secret) (*Set, error) {
	s := &Set{secrets: slices.Clone(secrets)}
	var bodies, names []pattern
	for i, secret := range secrets {
		switch {
		case secret.Name == "":
			return nil, errors.New("secret without a name")
		case secret.Hosts == nil:
			return nil, fmt.Errorf("secret %q: no scope", secret.Name)
		case !validPlaceholder(secret.Placeholder):
			return nil, fmt.Errorf("secret %q: its placeholder is none", secret.Name)
		}
		for _, other := range secrets[:i] {
			if other.Name == secret.Name {
				return nil, fmt.Errorf("secret %q: given twice", secret.Name)
			}
			if other.Placeholder == secret.Placeholder {
				return nil, fmt.Errorf("secret %q: has the placeholder of %q", secret.Name, other.Name)
			}
		}
		s.secrets[i].Value = Value{}
		of := &sought{index: i}
		bodies = append(bodies, forms([]byte(secret.Placeholder), of)...)
		for _, p := range forms(bytes.ToLower([]byte(secret.Placeholder)), of)[:2] { // base64 does not survive there
			p.fold = anyCase
			names = append(names, p)
		}
	}
	state := &values{bound: make([]bound, len(secrets))}
	for i, secret := range secrets {
		if err := s.check(secret.Value); err != nil {
			return nil, fmt.Errorf("secret %q: %w", secret.Name, err)
		}
		state.bound[i].value = secret.Value
	}
	s.bodies, s.names = newMatcher(bodies), newMatcher(names)
	s.state.Store(state)
	return s, nil
}

// check refuses a value with a placeholder in it: of two such values each would stand for the other.
func (s *Set) check(v Value) error {
	for _, secret := range s.secrets {
		if bytes.Contains(v.bytes(), []byte(secret.Placeholder)) {
			return fmt.Errorf("the value has the placeholder of %q in it", secret.Name)
		}
	}
	return nil
}

// Rotate gives the secret a new value, or its first. Scopes and streams that there are go on with it; the old one is
// redacted in responses as before.
func (s *Set) Rotate(name string, v Value) error {
	if v.IsZero() {
		return fmt.Errorf("secret %q: no value", name)
	}
	if err := s.check(v); err != nil {
		return fmt.Errorf("secret %q: %w", name, err)
	}
	return s.update(name, func(b *bound) error {
		if b.revoked {
			return fmt.Errorf("secret %q: revoked", name)
		}
		b.retire()
		b.value = v
		return nil
	})
}

// Revoke has the secret's placeholder refused from now on, everywhere. Its values are redacted in responses as before.
func (s *Set) Revoke(name string) error {
	return s.update(name, func(b *bound) error {
		b.retire()
		b.revoked = true
		return nil
	})
}

// retire makes the value an old one, if it has not been one before: who rotates
// among a few values has these looked for, however often.
func (b *bound) retire() {
	same := func(v Value) bool { return bytes.Equal(v.bytes(), b.value.bytes()) }
	if !b.value.IsZero() && !slices.ContainsFunc(b.old, same) {
		b.old = append(slices.Clip(b.old), b.value)
	}
	b.value = Value{}
}

func (s *Set) update(name string, change func(*bound) error) error {
	i := slices.IndexFunc(s.secrets, func(secret Secret) bool { return secret.Name == name })
	if i < 0 {
		return fmt.Errorf("secret %q: there is none of this name", name)
	}
	s.change.Lock()
	defer s.change.Unlock()
	next := &values{bound: slices.Clone(s.state.Load().bound)}
	if err := change(&next.bound[i]); err != nil {
		return err
	}
	s.state.Store(next)
	return nil
}

// For returns what the secrets are towards a host, given by its normalised name.
func (s *Set) For(host string) *Scope {
	in := make([]byte, len(s.secrets))
	for i, secret := range s.secrets {
		if secret.Hosts(host) {
			in[i] = 1
		}
	}
	return &Scope{set: s, in: string(in)}
}

// Outside returns a scope with no secret in it, in which every placeholder is a leak: for plain HTTP, and for flows
// without a name.
func (s *Set) Outside() *Scope {
	return &Scope{set: s, in: string(make([]byte, len(s.secrets)))}
}

// redactor returns the matcher for all values that secrets in the scope have had.
func (v *values) redactor(s *Scope) *matcher {
	// Of functions, since they hold the values: see Value.
	made, ok := v.redactors.Load(s.in)
	if !ok {
		made, _ = v.redactors.LoadOrStore(s.in, sync.OnceValue(func() *matcher {
			var patterns []pattern
			for i, b := range v.bound {
				if s.in[i] == 0 {
					continue
				}
				of := &sought{i, []byte(s.set.secrets[i].Placeholder)}
				for _, value := range append([]Value{b.value}, b.old...) {
					if !value.IsZero() {
						patterns = append(patterns, forms(value.bytes(), of)...)
					}
				}
			}
			return newMatcher(patterns)
		}))
	}
	return made.(func() *matcher)()
}
