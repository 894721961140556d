package intercept

import (
	"context"
	"net/http"
	"runtime"
	"testing"
	"time"
	"weak"

	"github.com/matchlock/matchlock/api"
)

// A connection that is cut in the middle of a request costs no memory any more:
// nothing, such as a timer of net/http's, keeps it.
func TestCutConnectionsForgotten(t *testing.T) {
	asked := make(chan struct{})
	everyWay(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		asked <- struct{}{}
		<-r.Context().Done()
	}, func(t *testing.T, w *world, c *http.Client, url string) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r, err := http.NewRequestWithContext(ctx, "GET", url, nil)
		if err != nil {
			t.Fatal(err)
		}
		answered := make(chan error, 1)
		go func() {
			resp, err := c.Do(r)
			if err == nil {
				resp.Body.Close()
			}
			answered <- err
		}()
		<-asked
		kept := make(map[weak.Pointer[flow]]bool)
		w.i.mu.Lock()
		for f := range w.i.flows {
			kept[weak.Make(f)] = true
			go f.cut(errClosed)
		}
		w.i.mu.Unlock()
		if len(kept) == 0 {
			t.Fatal("no flow")
		}
		if err := <-answered; err != nil {
			t.Log(err) // it may have been answered before
		}
		w.waitEvent(func(api.Event) bool { return w.i.Flows() == 0 })
		for deadline := time.Now().Add(10 * time.Second); len(kept) > 0; time.Sleep(10 * time.Millisecond) {
			runtime.GC()
			for f := range kept {
				if f.Value() == nil {
					delete(kept, f)
				}
			}
			if time.Now().After(deadline) {
				t.Fatalf("%d flows are kept in memory after their end", len(kept))
			}
		}
	})
}
