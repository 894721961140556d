package qemu

import (
	"fmt"
	"testing"
)

func TestConsoleLastLines(t *testing.T) {
	tests := map[string]struct{ said, want string }{
		"nothing":     {"\r\n \n", ""},
		"a few lines": {"one\r\ntwo\nthr", "one; two; thr"},
		"the last":    {"1\n2\n3\n4\n5\n6\n", "2; 3; 4; 5; 6"},
		"a panic": {
			"1\n2\n3\nOut of memory: Killed process 1\n[ 4.1] Kernel panic - not syncing: System is deadlocked on memory\nCall Trace:\n a\n b\n c\n d\n",
			"1; 2; 3; Out of memory: Killed process 1; [ 4.1] Kernel panic - not syncing: System is deadlocked on memory",
		},
		"what acts on a terminal": {"\x1b[2Jgone", "\ufffd[2Jgone"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := openConsole("")
			if err != nil {
				t.Fatal(err)
			}
			fmt.Fprint(c, test.said)
			if got := c.lastLines(); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}
