package state

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"regexp"
	"slices"
	"strings"
)

// ErrNameTaken says that another sandbox has the name.
var ErrNameTaken = errors.New("name is taken")

var validName = regexp.MustCompile(`^[a-z0-9][a-z0-9_.-]{0,62}$`)

// CheckName says what is wrong with a name for a sandbox.
func CheckName(name string) error {
	if !validName.MatchString(name) {
		return fmt.Errorf("name %q: want up to 63 of a-z, 0-9, '_', '.' and '-', a letter or digit first", name)
	}
	return nil
}

// NotFoundError is a sandbox that there is not.
type NotFoundError struct {
	Ref  string
	Near string // the name most like it, or ""
	// Unread is why a sandbox's name could not be read, if there is one.
	Unread error
}

func (e *NotFoundError) Error() string {
	text := fmt.Sprintf("sandbox %q not found", e.Ref)
	if e.Unread != nil {
		text += fmt.Sprintf("; of one the name could not be read: %v", e.Unread)
	}
	return text
}

// Hint is the way out.
func (e *NotFoundError) Hint() string {
	hint := "`matchlock ps -a` lists them"
	if e.Near != "" {
		hint += fmt.Sprintf("; did you mean %q?", e.Near)
	}
	return hint
}

// AmbiguousError is the beginning of several ids.
type AmbiguousError struct {
	Ref string
	IDs []string
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("sandbox %q: several ids begin so: %s", e.Ref, strings.Join(e.IDs, ", "))
}

// Hint is the way out.
func (e *AmbiguousError) Hint() string { return "give more of the id, or the name" }

// match finds what a user calls ref: by its name, else its id, else the
// beginning of its id.
func match(entries []Entry, ref string) (Entry, error) {
	for _, e := range entries {
		if e.Name == ref && ref != "" {
			return e, nil
		}
	}
	var found []Entry
	for _, e := range entries {
		if e.ID == ref {
			return e, nil
		}
		if ref != "" && strings.HasPrefix(e.ID, ref) {
			found = append(found, e)
		}
	}
	switch len(found) {
	case 0:
		return Entry{}, &NotFoundError{ref, nearest(entries, ref), unread(entries)}
	case 1:
		return found[0], nil
	}
	e := &AmbiguousError{Ref: ref}
	for _, f := range found {
		e.IDs = append(e.IDs, f.ID)
	}
	return Entry{}, e
}

// unread is why a name is not known that may be any. One in a damaged record never will be.
func unread(entries []Entry) error {
	for _, e := range entries {
		if _, ok := errors.AsType[*fs.PathError](e.Problem); ok {
			return e.Problem
		}
	}
	return nil
}

// nearest returns a name that ref is a slip of: it begins so, or differs in a
// letter or two.
func nearest(entries []Entry, ref string) string {
	best, least := "", 3
	for _, e := range entries {
		if e.Name == "" || len(ref) < 2 {
			continue
		}
		if strings.HasPrefix(e.Name, ref) {
			return e.Name
		}
		if d := distance(e.Name, ref); d < least {
			best, least = e.Name, d
		}
	}
	return best
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range a {
		above := row[0]
		row[0] = i + 1
		for j := range b {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			above, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, above+cost)
		}
	}
	return row[len(b)]
}

// takeName returns the name for a new sandbox: the one asked for, if no other
// has it, or one made up.
func takeName(entries []Entry, asked, id string) (string, error) {
	taken := func(name string) bool {
		return slices.ContainsFunc(entries, func(e Entry) bool { return e.ID != id && e.Name == name })
	}
	if asked != "" {
		if err := CheckName(asked); err != nil {
			return "", err
		}
		if taken(asked) {
			return "", fmt.Errorf("name %q: %w", asked, &takenError{})
		}
		if err := unread(entries); err != nil {
			return "", fmt.Errorf("name %q: another sandbox may have it: %w", asked, err)
		}
		return asked, nil
	}
	for range 20 {
		if name := pick(adjectives) + "-" + pick(animals); !taken(name) {
			return name, nil
		}
	}
	return pick(adjectives) + "-" + pick(animals) + "-" + id[:4], nil // so many sandboxes that words run out
}

// takenError is ErrNameTaken with the way out.
type takenError struct{}

func (*takenError) Error() string { return "another sandbox has it" }
func (*takenError) Unwrap() error { return ErrNameTaken }
func (*takenError) Hint() string {
	return "choose another; `matchlock rm` removes a sandbox, `matchlock rename` renames one"
}

func pick(words []string) string {
	n, err := rand.Int(rand.Reader, big.NewInt(int64(len(words))))
	if err != nil {
		panic(err) // crypto/rand never fails
	}
	return words[n.Int64()]
}

var adjectives = strings.Fields(`
	able agile amber ample apt azure bold brave brief bright brisk bronze calm clean clear clever coral crisp
	daring deft early eager even fair fast fine firm fleet fond fresh gentle glad gold good grand green happy
	hardy honest humble ivory jolly keen kind lean level light lilac lively loyal lucid lucky mellow merry mild
	modest neat nimble noble olive open patient plain polite proud pure quick quiet rapid ready robust rosy
	sage sharp silver simple sleek smart smooth snug sober solid spry stable steady still stoic stout sunny
	sure swift tame tidy tough true upbeat vivid warm wary wise witty young zesty
`)

var animals = strings.Fields(`
	adder alpaca ant auk badger bat bear beaver bee bison boar bobcat bream budgie camel carp cat civet clam
	cod condor coot crab crane cricket crow deer dingo dove duck eagle eel egret elk emu falcon ferret finch
	flea fox frog gecko goat goose grebe gull hare hawk hedgehog heron hippo horse ibex ibis jackal jay
	kestrel kite kiwi koala lark lemur lion lizard llama lynx magpie marten mink mole moose moth mouse mule
	newt ocelot orca osprey otter owl ox oyster panda parrot perch pigeon pike plover pony puffin quail rabbit
	raven robin salmon seal shrew shrimp skunk sloth snail snipe sparrow squid stoat stork swan swift tapir
	teal tern tiger toad trout tuna turtle viper vole walrus wasp weasel whale wolf wombat wren yak zebra
`)
