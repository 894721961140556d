package intercept

import (
	"context"
	"encoding/json"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/matchlock/matchlock/api"
	"github.com/matchlock/matchlock/internal/names"
	"github.com/matchlock/matchlock/internal/policy"
)

// changeStacks closes the stack and opens another: the guest has connections that
// the other knows nothing of, as one that goes on from a snapshot. Every other time
// all of the host's side is another too, and has what a snapshot keeps.
func (w *soakWorld) changeStacks(ctx context.Context, r *rand.Rand, every time.Duration) {
	for {
		wait(ctx, every/2+time.Duration(r.Int64N(int64(every))))
		if ctx.Err() != nil {
			return // with what is on its way left to end of itself
		}
		if r.IntN(3) == 0 {
			w.wire.pause(ctx, time.Duration(r.Int64N(int64(500*time.Millisecond))))
			continue
		}
		w.mu.Lock()
		h := w.host
		if r.IntN(2) == 0 { // as a sandbox ends
			if err := h.flows.Close(); err != nil {
				w.Error(err)
			}
			w.detach(h)
			h = w.reopen(h)
			w.host = h
		} else {
			w.detach(h)
		}
		w.attach(h)
		w.done["reopened"]++
		w.mu.Unlock()
	}
}

// reopen makes a host's side of what another has left.
func (w *soakWorld) reopen(h *soakHost) *soakHost {
	text, err := json.Marshal(h.names.Table)
	if err != nil {
		w.Fatal(err)
	}
	table := names.NewTable()
	if err := json.Unmarshal(text, table); err != nil {
		w.Fatal(err)
	}
	table.Fix(api.HostGateway, soakGateway.Addr())
	text, err = h.ca.Marshal()
	if err != nil {
		w.Fatal(err)
	}
	ca, err := ParseCA(text)
	if err != nil {
		w.Fatal(err)
	}
	return w.openHost(table, ca)
}

// changeRules is the user, who changes rules and secrets.
func (w *soakWorld) changeRules(ctx context.Context, r *rand.Rand) {
	var taken api.Rule // is put back next time
	for {
		wait(ctx, time.Duration(r.Int64N(int64(200*time.Millisecond))))
		if ctx.Err() != nil {
			return
		}
		w.mu.Lock()
		n := &w.config.Network
		switch i := r.IntN(10); {
		case taken.Target != "":
			n.Allow = append(slices.Clone(n.Allow), taken)
			taken = api.Rule{}
			n.Deny = nil
			w.setRules()
		case i == 0: // by a rule against it
			n.Deny = n.Allow[r.IntN(len(n.Allow)):][:1]
			w.setRules()
		case i < 4:
			k := r.IntN(len(n.Allow))
			taken = n.Allow[k]
			n.Allow, n.Deny = slices.Delete(slices.Clone(n.Allow), k, k+1), nil
			w.setRules()
		case i < 9:
			if err := w.host.secrets.Rotate("TOKEN", soakValue(w.T, r.IntN(5))); err != nil {
				w.Error(err)
			}
			w.done["rotated"]++
		default:
			if err := w.host.secrets.Revoke("GONE"); err != nil {
				w.Error(err)
			}
		}
		w.mu.Unlock()
	}
}

func (w *soakWorld) setRules() {
	config := w.config
	p, err := policy.Compile(&config)
	if err != nil {
		w.Error(err)
		return
	}
	w.policy.Store(p)
	w.host.flows.SetPolicy(p)
	w.done["rules"]++
}
