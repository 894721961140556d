package api

import "testing"

func TestFileRule(t *testing.T) {
	for _, text := range []string{"deny:write,create:**/*.lock", "allow:*:/a:b/", "deny:rename:x"} {
		var r FileRule
		if err := r.UnmarshalText([]byte(text)); err != nil {
			t.Error(err)
		} else if got := r.String(); got != text {
			t.Errorf("%q is written %q", text, got)
		}
	}
	for _, text := range []string{"", "deny", "deny:write", "deny:write:", "block:write:x", "deny:eat:x", "deny::x", "deny:write:[", "deny:write:!x", "deny:write:/"} {
		var r FileRule
		if err := r.UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is a rule: %+v", text, r)
		}
	}
}
