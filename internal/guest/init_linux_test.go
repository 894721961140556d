package guest

import "testing"

func TestCPUs(t *testing.T) {
	for cpus, want := range map[float64]string{0.5: "0", 1: "0", 1.5: "0-1", 2: "0-1", 4: "0-3"} {
		if got := firstCPUs(wholeCPUs(cpus)); got != want {
			t.Errorf("a share of %v is %s, want %s", cpus, got, want)
		}
	}
}
