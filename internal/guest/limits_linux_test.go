package guest

import (
	"math"
	"slices"
	"testing"

	"github.com/matchlock/matchlock/api"
)

func TestParseLimits(t *testing.T) {
	got, err := parseLimits([]api.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}, {Name: "core", Soft: 0, Hard: math.MaxUint64}})
	if err != nil {
		t.Fatal(err)
	}
	path, argv := limited(got, "/bin/true", []string{"true", "-x"})
	want := []string{limitsName, "7=10:20", "4=0:18446744073709551615", "--", "/bin/true", "true", "-x"}
	if path != "/proc/self/exe" || !slices.Equal(argv, want) {
		t.Errorf("got %s %q, want %q", path, argv, want)
	}
	for _, bad := range []api.Ulimit{{Name: "unheard"}, {Name: "nofile", Soft: 2, Hard: 1}} {
		if _, err := parseLimits([]api.Ulimit{bad}); err == nil {
			t.Errorf("%+v is taken", bad)
		}
	}
}
