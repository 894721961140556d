package api

import (
	"fmt"
	"strconv"
	"strings"
)

// RestartPolicy says after which ends a sandbox that is kept runs again by itself: one of
// the constants below, or RestartOnFailure with the most restarts there may be,
// "on-failure:5". One that was stopped, or killed, by somebody stays so, and nothing is
// started by a host that boots.
type RestartPolicy string

// The restart policies.
const (
	RestartNo        RestartPolicy = "no"         // as is ""
	RestartOnFailure RestartPolicy = "on-failure" // when the first command's exit code is not 0, or the machine broke
	RestartAlways    RestartPolicy = "always"
	// RestartUnlessStopped is docker's word for what RestartAlways is where no daemon
	// starts anything.
	RestartUnlessStopped RestartPolicy = "unless-stopped"
)

// Wants tells whether a sandbox is to run again that has ended with an exit code, and has
// been restarted so many times before.
func (p RestartPolicy) Wants(exitCode, restarts int) bool {
	switch when, most, _ := p.parse(); when {
	case RestartAlways, RestartUnlessStopped:
		return true
	case RestartOnFailure:
		return exitCode != 0 && (most == 0 || restarts < most)
	}
	return false
}

// parse splits a policy; most is 0 where there is no limit.
func (p RestartPolicy) parse() (when RestartPolicy, most int, err error) {
	switch p {
	case "", RestartNo:
		return RestartNo, 0, nil
	case RestartOnFailure, RestartAlways, RestartUnlessStopped:
		return p, 0, nil
	}
	if number, ok := strings.CutPrefix(string(p), string(RestartOnFailure)+":"); ok {
		if most, err := strconv.Atoi(number); err == nil && most > 0 {
			return RestartOnFailure, most, nil
		}
	}
	return "", 0, fmt.Errorf("restart policy %q: want no, on-failure, on-failure:N, always or unless-stopped", string(p))
}

// Validate checks the policy's form.
func (p RestartPolicy) Validate() error {
	_, _, err := p.parse()
	return err
}
