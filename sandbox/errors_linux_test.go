package sandbox

import (
	"errors"
	"io/fs"
	"net"
	"testing"

	"github.com/matchlock/matchlock/api"
)

// What needs the guest of a sandbox that has ended is ErrNotRunning, to who made it and to
// who is attached, as the package's documentation says.
func TestErrorsOfTheEnded(t *testing.T) {
	o := house(t)
	sb := o.run(t, "box", api.Config{})
	attached := o.attach(t, "box")
	if err := sb.Close(); err != nil {
		t.Fatal(err)
	}
	ctx := t.Context()
	for who, sb := range map[string]*Sandbox{"the maker": sb, "who is attached": attached} {
		_, statErr := sb.FS(ctx).Stat("etc")
		_, dialErr := sb.DialContext(ctx, "tcp", "localhost:80")
		for what, err := range map[string]error{
			"Command":     sb.Command(ctx, "true").Run(),
			"Run":         sb.Run(ctx, Background{Args: []string{"true"}}),
			"Stat":        statErr,
			"DialContext": dialErr,
		} {
			if !errors.Is(err, ErrNotRunning) {
				t.Errorf("%s of %s = %v, want ErrNotRunning", what, who, err)
			}
		}
		if _, ok := errors.AsType[*fs.PathError](statErr); !ok {
			t.Errorf("Stat of %s = %T, want an *fs.PathError", who, statErr)
		}
		if _, ok := errors.AsType[*net.OpError](dialErr); !ok {
			t.Errorf("DialContext of %s = %T, want a *net.OpError", who, dialErr)
		}
		if err := errors.Join(sb.Stop(ctx, 0), sb.Close(), sb.Close()); err != nil {
			t.Errorf("Stop and Close of %s: %v", who, err)
		}
	}
}
