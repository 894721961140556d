package api

import "testing"

func TestRestartPolicy(t *testing.T) {
	for _, tt := range []struct {
		policy         RestartPolicy
		code, restarts int
		want           bool
	}{
		{"", 1, 0, false},
		{RestartNo, 1, 0, false},
		{RestartAlways, 0, 1000, true},
		{RestartUnlessStopped, 0, 0, true},
		{RestartOnFailure, 0, 0, false},
		{RestartOnFailure, 1, 1000, true},
		{"on-failure:2", 1, 1, true},
		{"on-failure:2", 1, 2, false},
		{"on-failure:2", 0, 0, false},
	} {
		if err := tt.policy.Validate(); err != nil {
			t.Error(err)
		}
		if got := tt.policy.Wants(tt.code, tt.restarts); got != tt.want {
			t.Errorf("%q after exit code %d and %d restarts: %v, want %v", tt.policy, tt.code, tt.restarts, got, tt.want)
		}
	}
	for _, bad := range []RestartPolicy{"yes", "Always", "always:3", "on-failure:", "on-failure:0", "on-failure:-1", "on-failure:x", "no:1", " no"} {
		if bad.Validate() == nil {
			t.Errorf("%q is taken", bad)
		}
		if bad.Wants(1, 0) {
			t.Errorf("%q restarts", bad)
		}
	}
}
