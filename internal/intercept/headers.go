package intercept

import (
	"net/http"
	"net/textproto"
	"strings"
)

// hopByHop is what is between neighbours only: RFC 9110, 7.6.1.
var hopByHop = []string{"Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authorization", "Proxy-Authenticate", "Te", "Trailer", "Transfer-Encoding", "Upgrade", "Http2-Settings"}

func dropHopByHop(h http.Header) {
	trailers := false
	for _, list := range h["Te"] {
		trailers = trailers || hasToken(list, "trailers")
	}
	for _, list := range h["Connection"] {
		for name := range strings.SplitSeq(list, ",") {
			h.Del(textproto.TrimString(name))
		}
	}
	for _, name := range hopByHop {
		h.Del(name)
	}
	if trailers {
		h.Set("Te", "trailers") // gRPC asks for it
	}
}

func copyHeader(to, from http.Header) {
	for name, values := range from {
		to[name] = append(to[name], values...)
	}
}
