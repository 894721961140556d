package sandbox

import (
	"syscall"
	"testing"
)

func TestParseSignal(t *testing.T) {
	for text, want := range map[string]int{
		"SIGTERM": 15, "TERM": 15, "sigterm": 15, "15": 15, "SIGQUIT": 3, "9": 9, "64": 64,
		"SIGRTMIN": 34, "RTMIN+3": 37, "SIGRTMAX": 64, "RTMAX-1": 63,
	} {
		if got, err := ParseSignal(text); err != nil || got != want {
			t.Errorf("ParseSignal(%q) = %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"", "SIG", "0", "-1", "65", "SIGNONE", "RTMIN-1", "RTMAX+1", "RTMINx", "15 "} {
		if got, err := ParseSignal(text); err == nil {
			t.Errorf("ParseSignal(%q) = %d, want an error", text, got)
		}
	}
}

func TestLinuxSignal(t *testing.T) {
	for host, want := range map[syscall.Signal]int{syscall.SIGINT: 2, syscall.SIGTERM: 15, syscall.SIGUSR1: 10, syscall.SIGCONT: 18} {
		if got, err := linuxSignal(host); err != nil || got != want {
			t.Errorf("linuxSignal(%v) = %d, %v; want %d", host, got, err, want)
		}
	}
	if got, err := linuxSignal(syscall.Signal(99)); err == nil {
		t.Errorf("linuxSignal(99) = %d, want an error", got)
	}
}
