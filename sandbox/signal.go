package sandbox

import (
	"cmp"
	"fmt"
	"strconv"
	"strings"
	"syscall"
)

// Signals by Linux's number, which the guest goes by whatever the host's are.
const (
	sigHUP  = 1
	sigINT  = 2
	sigQUIT = 3
	sigKILL = 9
	sigPIPE = 13
	sigTERM = 15

	firstRealTime = 34 // SIGRTMIN as the C library has it
	lastSignal    = 64 // SIGRTMAX
)

// signals are Linux's in the order of signal(7), with their numbers on most
// architectures and what the host calls them.
var signals = []struct {
	name   string
	number int
	host   syscall.Signal
}{
	{"HUP", sigHUP, syscall.SIGHUP}, {"INT", sigINT, syscall.SIGINT}, {"QUIT", sigQUIT, syscall.SIGQUIT}, {"ILL", 4, syscall.SIGILL},
	{"TRAP", 5, syscall.SIGTRAP}, {"ABRT", 6, syscall.SIGABRT}, {"BUS", 7, syscall.SIGBUS}, {"FPE", 8, syscall.SIGFPE},
	{"KILL", sigKILL, syscall.SIGKILL}, {"USR1", 10, syscall.SIGUSR1}, {"SEGV", 11, syscall.SIGSEGV}, {"USR2", 12, syscall.SIGUSR2},
	{"PIPE", sigPIPE, syscall.SIGPIPE}, {"ALRM", 14, syscall.SIGALRM}, {"TERM", sigTERM, syscall.SIGTERM}, {"CHLD", 17, syscall.SIGCHLD},
	{"CONT", 18, syscall.SIGCONT}, {"STOP", 19, syscall.SIGSTOP}, {"TSTP", 20, syscall.SIGTSTP}, {"TTIN", 21, syscall.SIGTTIN},
	{"TTOU", 22, syscall.SIGTTOU}, {"URG", 23, syscall.SIGURG}, {"XCPU", 24, syscall.SIGXCPU}, {"XFSZ", 25, syscall.SIGXFSZ},
	{"VTALRM", 26, syscall.SIGVTALRM}, {"PROF", 27, syscall.SIGPROF}, {"WINCH", 28, syscall.SIGWINCH}, {"IO", 29, syscall.SIGIO},
	{"SYS", 31, syscall.SIGSYS},
}

// Signals are the names of Linux's signals, without SIG.
func Signals() (names []string) {
	for _, s := range signals {
		names = append(names, s.name)
	}
	return names
}

// linuxSignal is the guest's number of a signal of the host.
func linuxSignal(sig syscall.Signal) (int, error) {
	for _, s := range signals {
		if s.host == sig {
			return s.number, nil
		}
	}
	return 0, fmt.Errorf("signal %d: the guest has none like it", int(sig))
}

// ParseSignal returns Linux's number of a signal as a Dockerfile's STOPSIGNAL or
// kill(1) may have it: "SIGTERM", "TERM", "15", "RTMIN+3".
func ParseSignal(text string) (int, error) {
	name := strings.TrimPrefix(strings.ToUpper(text), "SIG")
	for _, s := range signals {
		if s.name == name {
			return s.number, nil
		}
	}
	base := 0
	if rest, ok := strings.CutPrefix(name, "RTMIN"); ok {
		base, name = firstRealTime, cmp.Or(rest, "0")
	} else if rest, ok := strings.CutPrefix(name, "RTMAX"); ok {
		base, name = lastSignal, cmp.Or(rest, "0")
	}
	n, err := strconv.Atoi(name)
	if n += base; err != nil || n < 1 || n > lastSignal || base != 0 && n < firstRealTime {
		return 0, fmt.Errorf("signal %q: unknown", text)
	}
	return n, nil
}
