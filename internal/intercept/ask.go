package intercept

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/matchlock/matchlock/api"
)

// maxAnswer bounds what a hook's socket answers, in bytes.
const maxAnswer = 1 << 20

// question is the line of JSON that is written to a hook's socket.
type question struct {
	Phase   api.HookPhase `json:"phase"`
	Hook    string        `json:"hook"`
	Flow    uint64        `json:"flow"`
	Host    string        `json:"host"`
	Port    uint16        `json:"port"`
	Method  string        `json:"method"`
	Path    string        `json:"path"`
	Query   string        `json:"query"`
	Headers http.Header   `json:"headers"`

	// After the request only.
	Status          int         `json:"status,omitempty"`
	ResponseHeaders http.Header `json:"response_headers,omitempty"`
}

// answer is the line of JSON that is read from it: an api.Hook without what says
// what it is about. Action is allow, block, or mutate, which is also to leave all
// as it is.
type answer struct {
	Action        api.HookAction    `json:"action"`
	Reason        string            `json:"reason"` // of block
	SetHeaders    map[string]string `json:"set_headers"`
	DeleteHeaders []string          `json:"delete_headers"`
	SetQuery      map[string]string `json:"set_query"`
	DeleteQuery   []string          `json:"delete_query"`
	RewritePath   string            `json:"rewrite_path"`
	Replace       []api.Replacement `json:"replace"`
}

func (x *exchange) question(h *hook, r *http.Request, resp *http.Response) *question {
	seen := x.seen(r)
	q := &question{
		Phase: h.Phase, Hook: h.Name, Flow: x.flow.id,
		Host: seen.Host, Port: seen.Port, Method: seen.Method, Path: seen.Path, Query: seen.Query, Headers: seen.Header,
	}
	if resp != nil {
		q.Status, q.ResponseHeaders = resp.StatusCode, resp.Header
	}
	return q
}

// ask asks who listens at the hook's socket what to do, and why. Whatever goes wrong
// blocks.
func (h *hook) ask(ctx context.Context, q *question) (change *api.Hook, reason string, err error) {
	timeout := time.Duration(h.TimeoutMS) * time.Millisecond
	if timeout == 0 {
		timeout = askTime
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	a, err := h.exchange(ctx, q)
	if ctx.Err() != nil {
		err = errors.New("no answer in time")
	}
	if err != nil {
		return nil, "", h.blocked(err.Error())
	}
	change = &api.Hook{
		Action: a.Action, SetHeaders: a.SetHeaders, DeleteHeaders: a.DeleteHeaders,
		SetQuery: a.SetQuery, DeleteQuery: a.DeleteQuery, RewritePath: a.RewritePath, Replace: a.Replace,
	}
	switch a.Action {
	case api.HookAllow, api.HookBlock, api.HookMutate:
	default:
		return nil, "", h.blocked(fmt.Sprintf("action %q: neither allow, block nor mutate", a.Action))
	}
	if err := checkMutation(h.Phase, change); err != nil {
		return nil, "", h.blocked(err.Error())
	}
	return change, a.Reason, nil
}

func (h *hook) exchange(ctx context.Context, q *question) (*answer, error) {
	line, err := json.Marshal(q)
	if err != nil {
		return nil, err
	}
	conn, err := new(net.Dialer).DialContext(ctx, "unix", h.Socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := conn.Write(append(line, '\n')); err != nil {
		return nil, err
	}
	line, err = bufio.NewReader(io.LimitReader(conn, maxAnswer)).ReadBytes('\n')
	if err != nil {
		return nil, fmt.Errorf("its answer is no line of at most %d bytes: %w", maxAnswer, err)
	}
	var a answer
	if err := json.Unmarshal(line, &a); err != nil {
		return nil, err
	}
	return &a, nil
}
