package intercept

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/coder/websocket"
)

// client is one for the visit.
func (v *visit) client(protocols ...func(*http.Protocols, bool)) *http.Client {
	t := &http.Transport{
		DialContext: func(_ context.Context, _, address string) (net.Conn, error) {
			host, port, err := net.SplitHostPort(address)
			if err != nil {
				return nil, err
			}
			return v.dial(v.ctx, host, map[string]uint16{"80": 80, "443": 443}[port])
		},
		TLSClientConfig:    &tls.Config{RootCAs: v.trusted},
		Protocols:          new(http.Protocols),
		DisableCompression: true,
		DisableKeepAlives:  v.IntN(2) == 0,
	}
	if protocols == nil {
		t.Protocols.SetHTTP1(true)
	}
	for _, p := range protocols {
		p(t.Protocols, true)
	}
	context.AfterFunc(v.ctx, t.CloseIdleConnections)
	return &http.Client{Transport: t}
}

// ask returns what is answered, and sees that no value is in it.
func (v *visit) ask(c *http.Client, method, url string, h http.Header, body io.Reader) (*http.Response, []byte, error) {
	r, err := http.NewRequestWithContext(v.ctx, method, url, body)
	if err != nil {
		return nil, nil, err
	}
	if h != nil {
		r.Header = h
	}
	resp, err := c.Do(r)
	if err != nil {
		return nil, nil, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	var head bytes.Buffer
	resp.Header.Write(&head)
	for n := range 10 {
		for _, text := range [][]byte{text, head.Bytes()} {
			if bytes.Contains(text, fmt.Appendf(nil, "%s%d+/&end", valuePrefix, n)) {
				v.Errorf("%s gives the guest a value: %q", url, text)
			}
		}
	}
	return resp, text, err
}

// echo sends a body and has it back, some times on one connection.
func (v *visit) echo(c *http.Client, site string) error {
	for range 1 + v.IntN(4) {
		body := v.text(1 << v.IntN(18))
		resp, got, err := v.ask(c, "POST", site+"/echo", nil, struct{ io.Reader }{bytes.NewReader(body)})
		switch {
		case err != nil:
			return err
		case resp.StatusCode != http.StatusOK:
			return errors.New(resp.Status)
		case !bytes.Equal(got, body):
			v.Errorf("%s: %d bytes come back, and not the %d that were sent", site, len(got), len(body))
		case resp.Trailer.Get("X-Sent") != fmt.Sprint(len(body)):
			v.Errorf("%s: trailers %v", site, resp.Trailer)
		}
	}
	return nil
}

func (v *visit) text(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = 'a' + byte(v.IntN(26))
	}
	return b
}

// token uses a secret, and has its placeholder back.
func (v *visit) token(c *http.Client, name string) error {
	placeholder := v.placeholders[name]
	query := ""
	if name == "TOKEN" {
		query = "?key=" + placeholder
	}
	resp, got, err := v.ask(c, "GET", "https://api.test/token"+query, http.Header{"Authorization": {"Bearer " + placeholder}}, nil)
	switch {
	case err != nil:
		return err
	case name == "GONE" && resp.StatusCode == http.StatusForbidden:
		return nil
	case resp.StatusCode != http.StatusOK:
		return errors.New(resp.Status)
	case !bytes.Contains(got, []byte(placeholder)):
		v.Errorf("want the placeholder back, got %q", got)
	}
	return nil
}

// big reads an answer slowly.
func (v *visit) big(site string) error {
	size := 1 << (14 + v.IntN(7))
	r, err := http.NewRequestWithContext(v.ctx, "GET", fmt.Sprintf("%s/big?n=%d", site, size), nil)
	if err != nil {
		return err
	}
	resp, err := v.client(h2).Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	b := make([]byte, 1+v.IntN(1<<16))
	got := 0
	for {
		n, err := resp.Body.Read(b)
		got += n
		if err == io.EOF && got == size {
			return nil
		}
		if err != nil {
			return err
		}
		if v.IntN(4) == 0 {
			wait(v.ctx, time.Millisecond)
		}
	}
}

// events reads server-sent events, and sometimes has enough of them.
func (v *visit) events() error {
	placeholder := v.placeholders["TOKEN"]
	r, err := http.NewRequestWithContext(v.ctx, "GET", "https://api.test/events", nil)
	if err != nil {
		return err
	}
	r.Header.Set("Authorization", placeholder)
	resp, err := v.client().Do(r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	most := int64(1 << 20)
	if v.IntN(3) == 0 {
		most = 50
	}
	text, err := io.ReadAll(io.LimitReader(resp.Body, most))
	if err == nil && !bytes.HasPrefix(text, []byte("data: 0 "+placeholder[:8])) {
		err = fmt.Errorf("%s, %q", resp.Status, text)
	}
	return err
}

func (v *visit) socket(url, text string) error {
	c, resp, err := websocket.Dial(v.ctx, url, &websocket.DialOptions{HTTPClient: v.client()})
	if err != nil {
		return err
	}
	if resp.Body != nil {
		defer resp.Body.Close()
	}
	defer c.CloseNow()
	c.SetReadLimit(1 << 20)
	for range 1 + v.IntN(5) {
		message := append(v.text(1<<v.IntN(16)), text...)
		if err := c.Write(v.ctx, websocket.MessageText, message); err != nil {
			return err
		}
		_, got, err := c.Read(v.ctx)
		if err != nil {
			return err
		}
		if !bytes.Equal(got, message) {
			v.Errorf("%s: %d bytes come back, and not the %d that were sent", url, len(got), len(message))
		}
	}
	if v.IntN(3) == 0 {
		return nil // without a word
	}
	return c.Close(websocket.StatusNormalClosure, "")
}

// leak sends a placeholder where it must not go.
func (v *visit) leak() error {
	url := []string{"http://plain.test", "http://api.test"}[v.IntN(2)]
	resp, _, err := v.ask(v.client(), "GET", url+"/token", http.Header{"Authorization": {v.placeholders["TOKEN"]}}, nil)
	if err != nil {
		return err
	}
	switch resp.StatusCode {
	case http.StatusForbidden:
		return nil
	case http.StatusOK:
		v.Errorf("%s takes a placeholder", url)
	}
	return errors.New(resp.Status)
}

// fails asks for what never comes whole.
func (v *visit) fails(url string) error {
	ctx, cancel := context.WithTimeout(v.ctx, time.Duration(v.IntN(500))*time.Millisecond)
	defer cancel()
	v.ctx = ctx
	if _, _, err := v.ask(v.client(h2), "GET", url, nil, nil); err == nil {
		return fmt.Errorf("%s is answered", url) // that it is refused
	}
	return nil
}
