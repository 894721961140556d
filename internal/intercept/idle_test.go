package intercept

import (
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

type closes struct{ n atomic.Int32 }

func (c *closes) Close() error { c.n.Add(1); return nil }

// A connection is idle when there was no request for a while, not when one lasts.
func TestIdleHTTP2(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var closed closes
		var f flow
		passes := func(d time.Duration, want int32) {
			t.Helper()
			time.Sleep(d)
			synctest.Wait()
			if n := closed.n.Load(); n != want {
				t.Errorf("closed %d times, want %d", n, want)
			}
		}
		f.closeIdle(&closed)
		passes(idleTime-time.Second, 0)
		f.beginRequest()
		f.beginRequest()
		passes(2*idleTime, 0)
		f.endRequest()
		passes(2*idleTime, 0)
		f.endRequest()
		passes(idleTime-time.Second, 0)
		passes(2*time.Second, 1)

		var ended flow
		ended.closeIdle(&closed)
		ended.beginRequest()
		go ended.waitRequests()
		synctest.Wait()
		ended.endRequest() // the last one, of a connection that has ended
		passes(2*idleTime, 1)
	})
}
