package image

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"
)

// change alters the configuration that an image is imported with.
type change func(*v1.Config)

// parseChanges reads lines of a Dockerfile.
func parseChanges(lines []string) ([]change, error) {
	var first, changes []change
	for _, line := range lines {
		word, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		word, value = strings.ToUpper(word), strings.TrimSpace(value)
		c, err := parseChange(word, value)
		if err != nil {
			return nil, fmt.Errorf("change %q: %w", line, err)
		}
		if word == "ENTRYPOINT" {
			first = append(first, c) // it clears the image's own CMD, but none that is given beside it
		} else {
			changes = append(changes, c)
		}
	}
	return append(first, changes...), nil
}

func parseChange(word, rest string) (change, error) {
	if rest == "" || strings.ContainsRune(rest, 0) {
		return nil, errors.New("must be an instruction and its value")
	}
	switch word {
	case "CMD":
		argv, err := parseCommand(rest)
		return func(c *v1.Config) { c.Cmd = argv }, err
	case "ENTRYPOINT":
		argv, err := parseCommand(rest)
		return func(c *v1.Config) { c.Entrypoint, c.Cmd = argv, nil }, err
	case "ENV":
		env, err := parseEnv(rest)
		return func(c *v1.Config) { c.Env = mergeEnv(c.Env, env) }, err
	case "USER":
		return func(c *v1.Config) { c.User = rest }, nil
	case "WORKDIR":
		if !strings.HasPrefix(rest, "/") {
			return nil, errors.New("must be an absolute path")
		}
		return func(c *v1.Config) { c.WorkingDir = rest }, nil
	}
	return nil, errors.New("must be CMD, ENTRYPOINT, ENV, USER or WORKDIR")
}

// parseCommand reads a JSON list of arguments, or else a command for the shell.
func parseCommand(s string) ([]string, error) {
	if !strings.HasPrefix(s, "[") {
		return []string{"/bin/sh", "-c", s}, nil
	}
	var argv []string
	if err := json.Unmarshal([]byte(s), &argv); err != nil {
		return nil, fmt.Errorf("not a JSON list of strings: %w", err)
	}
	if slices.ContainsFunc(argv, func(arg string) bool { return strings.ContainsRune(arg, 0) }) {
		return nil, errors.New("has a NUL")
	}
	return argv, nil
}

// parseEnv reads NAME=value pairs, values quoted where they hold blanks, or one old-style "NAME value".
func parseEnv(s string) ([]string, error) {
	first, rest, _ := strings.Cut(s, " ")
	if !strings.Contains(first, "=") {
		if rest == "" || first == "" {
			return nil, errors.New("must be NAME=value")
		}
		return []string{first + "=" + strings.TrimSpace(rest)}, nil
	}
	var env []string
	for s != "" {
		pair, rest, err := cutWord(s)
		if err != nil {
			return nil, err
		}
		if strings.Index(pair, "=") < 1 {
			return nil, fmt.Errorf("%q is not NAME=value", pair)
		}
		env, s = append(env, pair), strings.TrimLeft(rest, " \t")
	}
	return env, nil
}

// cutWord takes the first word, without its quotes and backslashes, from s.
func cutWord(s string) (word, rest string, err error) {
	var b strings.Builder
	var quote byte
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '\\' && quote != '\'' && i+1 < len(s):
			i++
			b.WriteByte(s[i])
		case quote == 0 && (c == '"' || c == '\''):
			quote = c
		case quote != 0 && c == quote:
			quote = 0
		case quote == 0 && (c == ' ' || c == '\t'):
			return b.String(), s[i:], nil
		default:
			b.WriteByte(c)
		}
	}
	if quote != 0 {
		return "", "", fmt.Errorf("a quote %c is not closed", quote)
	}
	return b.String(), "", nil
}

// mergeEnv sets variables in a list of NAME=value.
func mergeEnv(env, set []string) []string {
	for _, pair := range set {
		name, _, _ := strings.Cut(pair, "=")
		env = slices.DeleteFunc(slices.Clone(env), func(old string) bool { return strings.HasPrefix(old, name+"=") })
		env = append(env, pair)
	}
	return env
}

func applyChanges(c *v1.Config, changes []change) {
	for _, change := range changes {
		change(c)
	}
}

// changedConfig applies changes to an image's configuration. Without any it stays what it is, to the byte.
func changedConfig(data []byte, changes []change) ([]byte, error) {
	if len(changes) == 0 {
		return data, nil
	}
	file, err := v1.ParseConfigFile(bytes.NewReader(data))
	if err != nil {
		return nil, fmt.Errorf("config: %w", err)
	}
	applyChanges(&file.Config, changes)
	return json.Marshal(file)
}
