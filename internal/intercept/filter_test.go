package intercept

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"testing/iotest"
)

// filtered is what the filter hands on of the bytes.
func filtered(in []byte, slow bool) ([]byte, *filter) {
	var r io.Reader = bytes.NewReader(in)
	if slow {
		r = iotest.OneByteReader(r)
	}
	f := newFilter(&readerConn{Reader: r}, "REFUSED", 0)
	out, _ := io.ReadAll(f)
	return out, f
}

type readerConn struct {
	readOnly
	io.Reader
}

func (c *readerConn) Read(p []byte) (int, error) { return c.Reader.Read(p) }

func TestFilter(t *testing.T) {
	const host = "Host: web.test\r\n"
	for _, in := range []string{
		"GET / HTTP/1.1\r\n" + host + "\r\n",
		"GET / HTTP/1.0\r\n" + host + "\r\nGET /b HTTP/1.1\r\n" + host + "A: \t b \r\n\r\n",
		"POST /a?b=c HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nGET /GET / HTTP/1.1\r\n" + host + "\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: Chunked\r\n\r\n5;a=b\r\nhello\r\n00\r\nX-Sum: 1\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n",
		"OPTIONS * HTTP/1.1\r\n" + host + "Empty:\r\n\r\n",
		"GET http://web.test/ HTTP/1.1\r\n" + host + "\r\n",
		"GET /ü HTTP/1.1\r\n" + host + "X: ü\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Content-Length: 0\r\n\r\n",
		"GET / HTTP/1.1\r\n" + host + "X: " + strings.Repeat("x", 60<<10) + "\r\n\r\n",
	} {
		for _, slow := range []bool{false, true} {
			if out, f := filtered([]byte(in), slow); string(out) != in || f.Fault() != nil {
				t.Errorf("%.300q\ncame out as %.300q: %v", in, out, f.Fault())
			}
		}
	}
	// One blank line goes.
	if out, _ := filtered([]byte("\r\nGET / HTTP/1.1\r\n"+host+"\r\n"), true); string(out) != "GET / HTTP/1.1\r\n"+host+"\r\n" {
		t.Errorf("%q", out)
	}
}

// smuggled are shapes that servers read in different ways. Each stands behind a
// good request, and before one that must not come through.
var smuggled = map[string]string{
	"no version":                 "GET /\r\nHost: a\r\n\r\n",
	"version 1.2":                "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
	"version 2.0":                "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
	"version in lower case":      "GET / http/1.1\r\nHost: a\r\n\r\n",
	"two blanks":                 "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
	"a tab":                      "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
	"a blank in the target":      "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
	"a fragment":                 "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
	"authority form":             "GET a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
	"another scheme":             "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
	"CONNECT":                    "CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
	"no host":                    "GET / HTTP/1.1\r\n\r\n",
	"two hosts":                  "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
	"two equal hosts":            "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n",
	"both lengths":               "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"two lengths":                "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
	"a list of lengths":          "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3, 3\r\n\r\nabc",
	"a signed length":            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +3\r\n\r\nabc",
	"a negative length":          "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: -3\r\n\r\nabc",
	"a length in hex":            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0x3\r\n\r\nabc",
	"an underscore in it":        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1_0\r\n\r\nabc",
	"an empty length":            "POST / HTTP/1.1\r\nHost: a\r\nContent-Length:\r\n\r\nabc",
	"a length too long":          "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999\r\n\r\nabc",
	"another coding":             "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
	"identity":                   "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc",
	"chunked twice":              "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"quoted chunked":             "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
	"xchunked":                   "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
	"a vertical tab":             "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
	"chunked in HTTP/1.0":        "POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
	"a blank before the colon":   "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
	"a blank before the name":    "GET / HTTP/1.1\r\n Host: a\r\nHost: a\r\n\r\n",
	"a folded header":            "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
	"no colon":                   "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
	"no name":                    "GET / HTTP/1.1\r\nHost: a\r\n: b\r\n\r\n",
	"a bare line feed":           "GET / HTTP/1.1\nHost: a\n\n",
	"one bare line feed":         "GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n",
	"a bare end":                 "GET / HTTP/1.1\r\nHost: a\r\n\n",
	"a bare carriage return":     "GET / HTTP/1.1\r\nHost: a\r\nX: b\rTransfer-Encoding: chunked\r\n\r\n",
	"a zero byte":                "GET / HTTP/1.1\r\nHost: a\r\nX: \x00\r\n\r\n",
	"two blank lines":            "\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
	"a chunk's size with 0x":     "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0x3\r\nabc\r\n0\r\n\r\n",
	"a chunk's size with a sign": "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n+3\r\nabc\r\n0\r\n\r\n",
	"a blank after it":           "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3 \r\nabc\r\n0\r\n\r\n",
	"no size":                    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n\r\nabc\r\n0\r\n\r\n",
	"a size that overflows":      "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n10000000000000003\r\nabc\r\n0\r\n\r\n",
	"a chunk too long":           "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabcd\r\n0\r\n\r\n",
	"a chunk's bare line feed":   "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\nabc\r\n0\r\n\r\n",
	"a long extension":           "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;" + strings.Repeat("x", 300) + "\r\nabc\r\n0\r\n\r\n",
	"a control in an extension":  "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;\x00\r\nabc\r\n0\r\n\r\n",
	"a trailer with a length":    "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nContent-Length: 3\r\n\r\n",
	"long headers":               "GET / HTTP/1.1\r\nHost: a\r\nX: " + strings.Repeat("x", 65<<10) + "\r\n\r\n",
	"behind an upgrade":          "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
}

func TestFilterRefuses(t *testing.T) {
	for name, in := range smuggled {
		for _, slow := range []bool{false, true} {
			first, last := "GET /first HTTP/1.1\r\nHost: a\r\n\r\n", "GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"
			out, f := filtered([]byte(first+in+last), slow)
			if f.Fault() == nil || !bytes.HasPrefix(out, []byte(first)) || bytes.Contains(out, []byte("/smuggled")) {
				t.Errorf("%s (slow: %v): fault %v, came out as %.500q", name, slow, f.Fault(), out)
			}
		}
	}
}

// FuzzHTTP1 has net/http read what the filter hands on: there are as many requests
// as the filter has counted, for the same hosts, and net/http takes them all. How
// the bytes come makes no difference.
func FuzzHTTP1(f *testing.F) {
	f.Add([]byte("GET / HTTP/1.1\r\nHost: a\r\n\r\nPOST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"))
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3;x\r\nabc\r\n0\r\nT: v\r\n\r\nGET http://b/ HTTP/1.0\r\nHost: b\r\n\r\n"))
	for _, in := range smuggled {
		f.Add([]byte(in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		out, filter := filtered(in, false)
		again, slow := filtered(in, true)
		if !bytes.Equal(out, again) || fmt.Sprint(filter.Fault()) != fmt.Sprint(slow.Fault()) {
			t.Fatalf("at once: %q, %v\nbyte by byte: %q, %v", out, filter.Fault(), again, slow.Fault())
		}
		ours := filter.heads
		var theirs int
		r := bufio.NewReader(bytes.NewReader(out))
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				if r.Buffered() > 0 && err != io.ErrUnexpectedEOF && theirs > ours {
					t.Fatal(err)
				}
				break
			}
			if req.Method == "REFUSED" {
				break
			}
			theirs++
			if _, err := io.Copy(io.Discard, req.Body); err != nil {
				break // it is cut off
			}
		}
		// net/http may refuse what the filter takes, as a URL: then it ends there.
		if theirs > ours {
			t.Errorf("net/http reads %d requests, the filter %d:\n%q", theirs, ours, out)
		}
	})
}
