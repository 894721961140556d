package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strings"
)

// maxEnvLine is the longest line of an env file.
const maxEnvLine = 1 << 20

// readEnvFile reads variables one a line: NAME=VALUE as it stands, quotes and
// all, or NAME, which copies the host's if that is set. Blank lines and lines
// that begin with # are passed over.
func readEnvFile(path string, lookup func(string) (string, bool)) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		if e, ok := errors.AsType[*os.PathError](err); ok {
			err = e.Err
		}
		return nil, err
	}
	defer f.Close()
	env := map[string]string{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, maxEnvLine)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimLeft(lines.Text(), " \t")
		if line == "" || line[0] == '#' {
			continue
		}
		key, value := cut(line)
		if key == "" || strings.ContainsAny(key, " \t\x00") {
			return nil, fmt.Errorf("line %d: %q is not the name of a variable", n, key)
		}
		if !strings.Contains(line, "=") {
			var set bool
			if value, set = lookup(key); !set {
				continue
			}
		}
		env[key] = value
	}
	return env, lines.Err()
}

// variable reads what -e takes: NAME=VALUE, or NAME for the host's value.
func variable(text string, lookup func(string) (string, bool)) (key, value string, err error) {
	key, value = cut(text)
	if key == "" {
		return "", "", fmt.Errorf("%q: a name is missing", text)
	}
	if !strings.Contains(text, "=") {
		var set bool
		if value, set = lookup(key); !set {
			return "", "", fmt.Errorf("%q: not set here, so there is nothing to copy", key)
		}
	}
	return key, value, nil
}

func cut(text string) (key, value string) {
	key, value, _ = strings.Cut(text, "=")
	return key, value
}
