// Command client is what the benchmarks of the network run in guests: all of them
// speak by the same one, and it measures by the guest's clock.
//
//	client download N URL        gets N bytes by HTTPS, and prints how many milliseconds it took
//	client latency N URL URL     prints the medians of N requests each, in milliseconds
//	client hold N URL URL        opens N connections, prints that it has, and waits
//
// Certificates are not checked: which ones there are differs from guest to guest, and
// is not what is measured.
package main

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Println("client:", err) // the console of a guest has no other stream
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) < 3 {
		return fmt.Errorf("arguments %q", args)
	}
	n, err := strconv.Atoi(args[1])
	if err != nil {
		return err
	}
	switch args[0] {
	case "download":
		return download(n, args[2])
	case "latency":
		return latency(n, args[2:])
	case "hold":
		return hold(n, args[2:])
	}
	return fmt.Errorf("arguments %q", args)
}

// download takes what comes as it comes, and decrypts none of it: in a guest that is
// emulated, that alone would be measured.
func download(n int, from string) error {
	u, err := url.Parse(from)
	if err != nil {
		return err
	}
	began := time.Now()
	conn, err := net.Dial("tcp", u.Host)
	if err != nil {
		return err
	}
	defer conn.Close()
	session := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, ServerName: u.Hostname()})
	if _, err := fmt.Fprintf(session, "GET %s HTTP/1.1\r\nHost: %s\r\n\r\n", u.Path, u.Host); err != nil {
		return err
	}
	got, err := io.CopyBuffer(struct{ io.Writer }{io.Discard}, io.LimitReader(conn, int64(n)), make([]byte, 128<<10))
	if got != int64(n) {
		return fmt.Errorf("%s: %d bytes of %d, %w", from, got, n, err)
	}
	fmt.Println("took", milliseconds(time.Since(began)))
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// latency has the requests take turns, each kind on a connection of its own, so that
// what else the machine does falls on both alike.
func latency(n int, urls []string) error {
	const unmeasured = 20
	connections, times := []*connection{}, make([][]float64, len(urls))
	for _, to := range urls {
		connections = append(connections, newConnection(to))
	}
	for i := range unmeasured + n {
		for k, c := range connections {
			took, err := c.get()
			if err != nil {
				return err
			}
			if i >= unmeasured {
				times[k] = append(times[k], took)
			}
		}
	}
	fmt.Print("took")
	for _, t := range times {
		slices.Sort(t)
		fmt.Print(" ", t[len(t)/2])
	}
	fmt.Println()
	return nil
}

func hold(n int, urls []string) error {
	for i := range n {
		if _, err := newConnection(urls[i%len(urls)]).get(); err != nil {
			return fmt.Errorf("connection %d: %w", i, err)
		}
	}
	fmt.Println("held")
	_, err := io.Copy(io.Discard, os.Stdin)
	return err
}

// connection is one that is kept, on which requests follow each other.
type connection struct {
	url    string
	client http.Client
}

func newConnection(to string) *connection {
	return &connection{to, http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}}
}

// get returns how many milliseconds the request and all of its response took.
func (c *connection) get() (float64, error) {
	request, err := http.NewRequest(http.MethodGet, c.url, nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Authorization", "Bearer "+os.Getenv("BENCH_TOKEN")) // a placeholder, where there is one
	began := time.Now()
	response, err := c.client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	if _, err := io.Copy(io.Discard, response.Body); err != nil {
		return 0, err
	}
	if response.StatusCode != http.StatusOK {
		return 0, fmt.Errorf("%s: %s", c.url, response.Status)
	}
	return milliseconds(time.Since(began)), nil
}
