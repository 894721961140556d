package vm

import "testing"

func TestKernelDNS(t *testing.T) {
	tests := map[string]struct {
		servers       []string
		suffix, param string
	}{
		"none":  {nil, "", ""},
		"one":   {[]string{"1.1.1.1"}, ":1.1.1.1", "1.1.1.1"},
		"two":   {[]string{"1.1.1.1", "8.8.8.8"}, ":1.1.1.1:8.8.8.8", "1.1.1.1,8.8.8.8"},
		"three": {[]string{"1.1.1.1", "8.8.8.8", "9.9.9.9"}, ":1.1.1.1:8.8.8.8", "1.1.1.1,8.8.8.8,9.9.9.9"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := KernelIPDNSSuffix(test.servers); got != test.suffix {
				t.Errorf("suffix %q, want %q", got, test.suffix)
			}
			if got := KernelDNSParam(test.servers); got != test.param {
				t.Errorf("parameter %q, want %q", got, test.param)
			}
		})
	}
}
