package sandbox

import (
	"io/fs"
	"testing"
)

func TestFileMode(t *testing.T) {
	for mode, want := range map[uint32]fs.FileMode{
		0o100644: 0o644,
		0o104755: 0o755 | fs.ModeSetuid,
		0o102755: 0o755 | fs.ModeSetgid,
		0o041777: 0o777 | fs.ModeDir | fs.ModeSticky,
		0o120777: 0o777 | fs.ModeSymlink,
		0o010600: 0o600 | fs.ModeNamedPipe,
		0o020666: 0o666 | fs.ModeDevice | fs.ModeCharDevice,
		0o060660: 0o660 | fs.ModeDevice,
		0o140600: 0o600 | fs.ModeSocket,
		0o170600: 0o600 | fs.ModeIrregular,
		0:        fs.ModeIrregular,
	} {
		if got := fileMode(mode); got != want {
			t.Errorf("fileMode(%o) = %v, want %v", mode, got, want)
		}
		if got := unixMode(want); got != mode&modeAll {
			t.Errorf("unixMode(%v) = %o, want %o", want, got, mode&modeAll)
		}
	}
}
