package main

import (
	"crypto/sha256"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// application is a server in this process, which knows what it was sent.
type application struct {
	port      int
	datagrams int           // the port of datagrams, which come back
	folder    string        // of /private/
	acks      sync.Map      // of chan string: what came to /ack, by the reader's name
	more      chan string   // what /held sends next
	gone      chan struct{} // one for each /held whose client is gone

	mu         sync.Mutex
	authorized []string // values of Authorization, in the order in which they came
	password   string   // of /private/
}

// appPatience is how long the application waits for a guest's next step.
const appPatience = 30 * time.Second

func startApplication(t *testing.T, certificate tls.Certificate, folder string) *application {
	t.Helper()
	a := &application{folder: folder, more: make(chan string), gone: make(chan struct{}, 100)}
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", a.echo)
	mux.HandleFunc("/events", a.events)
	mux.HandleFunc("/ack", a.ack)
	mux.HandleFunc("/held", a.held)
	mux.HandleFunc("/socket", socket)
	mux.HandleFunc("/test.Echo/", grpc)
	mux.HandleFunc("/private/", a.private)
	server := httptest.NewUnstartedServer(mux)
	server.TLS = &tls.Config{Certificates: []tls.Certificate{certificate}}
	server.EnableHTTP2 = true
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // of clients that leave in the middle of a handshake
	server.StartTLS()
	t.Cleanup(func() {
		server.CloseClientConnections()
		server.Close()
	})
	a.port = server.Listener.Addr().(*net.TCPAddr).Port
	conn, err := net.ListenPacket("udp", hostPort(0))
	if err != nil {
		t.Fatal(err)
	}
	var echoing sync.WaitGroup
	t.Cleanup(func() {
		conn.Close()
		echoing.Wait()
	})
	echoing.Go(func() {
		buffer := make([]byte, 64<<10)
		for {
			n, peer, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			conn.WriteTo(buffer[:n], peer)
		}
	})
	a.datagrams = conn.LocalAddr().(*net.UDPAddr).Port
	return a
}

// saw returns the values of Authorization that came since it was last asked.
func (a *application) saw() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	all := a.authorized
	a.authorized = nil
	return all
}

// echo says what the request was.
func (a *application) echo(w http.ResponseWriter, r *http.Request) {
	authorization := r.Header.Get("Authorization")
	sum := sha256.New()
	n, err := io.Copy(sum, r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	if authorization != "" {
		a.mu.Lock()
		a.authorized = append(a.authorized, authorization)
		a.mu.Unlock()
		w.Header().Set("X-Authorization", authorization)
	}
	fmt.Fprintf(w, "%s %s %d %x %s\n", r.Method, r.Proto, n, sum.Sum(nil), authorization)
}

// acksOf returns what the reader of a stream acknowledges. There may be several
// readers at a time, each with a name.
func (a *application) acksOf(r *http.Request) chan string {
	acks, _ := a.acks.LoadOrStore(r.URL.Query().Get("reader"), make(chan string))
	return acks.(chan string)
}

// events sends three, each when the one before has been acknowledged.
func (a *application) events(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/event-stream")
	for i := range 3 {
		fmt.Fprintf(w, "data: %d\n\n", i)
		http.NewResponseController(w).Flush()
		select {
		case got := <-a.acksOf(r):
			if got != strconv.Itoa(i) {
				fmt.Fprintf(w, "data: acknowledged was %q\n\n", got)
				return
			}
		case <-time.After(appPatience):
			fmt.Fprintf(w, "data: nobody acknowledged %d\n\n", i)
			return
		}
	}
	io.WriteString(w, "data: done\n\n")
}

func (a *application) ack(w http.ResponseWriter, r *http.Request) {
	select {
	case a.acksOf(r) <- r.URL.Query().Get("n"):
	case <-r.Context().Done():
	}
}

// held goes on until its client is gone.
func (a *application) held(w http.ResponseWriter, r *http.Request) {
	defer func() { a.gone <- struct{}{} }()
	io.WriteString(w, "held\n")
	for {
		http.NewResponseController(w).Flush()
		select {
		case text := <-a.more:
			io.WriteString(w, text+"\n")
		case <-r.Context().Done():
			return
		}
	}
}

// socket is a WebSocket that says the same, until it hears "close".
func socket(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"echo"}})
	if err != nil {
		return // Accept has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(1 << 20)
	for {
		kind, message, err := conn.Read(r.Context())
		if err != nil {
			return
		}
		if string(message) == "close" {
			conn.Close(4001, "as you like")
			return
		}
		if conn.Write(r.Context(), kind, message) != nil {
			return
		}
	}
}

// grpc serves the methods Once (one message for one), Talk (each when it comes) and
// Fail (no message and a status), by https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md.
func grpc(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "application/grpc")
	w.Header().Set(http.TrailerPrefix+"Grpc-Status", "0")
	w.Header().Set(http.TrailerPrefix+"Checksum-Bin", "AAEC")
	if r.ProtoMajor != 2 || r.Header.Get("Te") != "trailers" {
		http.Error(w, "not gRPC", http.StatusBadRequest)
		return
	}
	if r.URL.Path == "/test.Echo/Fail" {
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "9") // FAILED_PRECONDITION
		w.Header().Set(http.TrailerPrefix+"Grpc-Message", "not now: 100%25")
		return
	}
	http.NewResponseController(w).Flush() // of the headers, before there is a message
	for {
		var prefix [5]byte
		if _, err := io.ReadFull(r.Body, prefix[:]); err != nil {
			return // the client has said all
		}
		message := make([]byte, min(binary.BigEndian.Uint32(prefix[1:]), 1<<20))
		if _, err := io.ReadFull(r.Body, message); err != nil {
			return
		}
		w.Write(slices.Concat(prefix[:], message))
		http.NewResponseController(w).Flush()
	}
}

// private serves files to who knows the password.
func (a *application) private(w http.ResponseWriter, r *http.Request) {
	user, password, _ := r.BasicAuth()
	a.mu.Lock()
	right := user == "git" && password == a.password && password != ""
	a.mu.Unlock()
	if !right {
		w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
		http.Error(w, "who are you?", http.StatusUnauthorized)
		return
	}
	http.StripPrefix("/private/", http.FileServer(http.Dir(a.folder))).ServeHTTP(w, r)
}
