package main

import (
	"crypto/sha256"
	"fmt"
	"regexp"
	"strings"
	"testing"
)

// client is what a program of the guest does with a server, as it is typed where
// there is no sandbox.
type client struct {
	name   string
	script string // of sh; $WEB and $APP are URLs, $GIT and $SQL are ports
	want   string // all that it prints, a regular expression
}

// clients are those of Debian. issuer is who has signed the certificates that they
// see.
func (s *servers) clients(issuer string) []client {
	sum := fmt.Sprintf("%x", sha256.Sum256([]byte(bigFile)))
	return []client{
		{"curl HTTP/1.1", `curl --http1.1 -w '%{http_version}\n' $WEB/protocol`, "HTTP/1.1 web.test\n1.1\n"},
		{"curl HTTP/2", `curl --http2 -w '%{http_version}\n' $WEB/protocol`, "HTTP/2.0 web.test\n2\n"},
		{"curl in clear", `curl http://web.test:$PLAIN/protocol`, "HTTP/1.1 web.test\n"},
		{"curl twice on one connection", `curl -w '%{num_connects}\n' $WEB/digits $WEB/digits`, "01234567891\n01234567890\n"},
		{"curl Range", `curl -r 3-5 $WEB/digits`, "345"},
		{"download", `curl $WEB/big | sha256sum`, sum + "  -\n"},
		{"upload", `curl $WEB/big | curl -H 'Expect: 100-continue' --data-binary @- $APP/echo`, fmt.Sprintf("POST HTTP/2.0 %d %s \n", len(bigFile), sum)},
		{"upload HTTP/1.1 chunked", `curl $WEB/big | curl --http1.1 -H 'Transfer-Encoding: chunked' -T - $APP/echo`, fmt.Sprintf("PUT HTTP/1.1 %d %s \n", len(bigFile), sum)},
		{"openssl s_client", `openssl s_client -connect ${WEB#https://} -servername web.test -verify_hostname web.test -verify_return_error -alpn h2 </dev/null 2>&1 |
			grep -E '^(issuer=|ALPN|Verification)'`, "issuer=.*" + issuer + "\nVerification: OK\nALPN protocol: h2\n"},
		eventStream("$APP"),
		{"python WebSocket", python(`
import asyncio, os, ssl, websockets
async def main():
    url = os.environ["APP"].replace("https", "wss") + "/socket"
    async with websockets.connect(url, ssl=ssl.create_default_context(), subprotocols=["echo"], max_size=None) as ws:
        print(ws.subprotocol)
        for message in ["one", "x" * 300000, b"\0\1\2", ""]:
            await ws.send(message)
            assert await ws.recv() == message
        pong = await ws.ping()
        receiving = asyncio.ensure_future(ws.recv())
        await asyncio.wait_for(pong, 20)
        await ws.send("close")
        try:
            await receiving
        except websockets.ConnectionClosed as e:
            print(e.rcvd.code, e.rcvd.reason)
asyncio.run(main())`), "echo\n4001 as you like\n"},
		{"python gRPC", python(`
import grpc, os, queue
roots = open(os.environ["SSL_CERT_FILE"], "rb").read()
with grpc.secure_channel(os.environ["APP"].removeprefix("https://"), grpc.ssl_channel_credentials(roots)) as channel:
    print(channel.unary_unary("/test.Echo/Once")(b"x" * 100000, timeout=30) == b"x" * 100000)
    out = queue.Queue()
    talk = channel.stream_stream("/test.Echo/Talk")(iter(out.get, None), timeout=30)
    for message in [b"one", b"", b"three"]:
        out.put(message)
        print(next(talk))
    out.put(None)
    print(list(talk), talk.code(), dict(talk.trailing_metadata())["checksum-bin"])
    try:
        channel.unary_unary("/test.Echo/Fail")(b"", timeout=30)
    except grpc.RpcError as e:
        print(e.code(), e.details())`), "True\nb'one'\nb''\nb'three'\n\\[\\] StatusCode.OK b'\\\\x00\\\\x01\\\\x02'\nStatusCode.FAILED_PRECONDITION not now: 100%\n"},
		{"python requests", python(`
import os, requests
with requests.Session() as s:
    r = s.get(os.environ["WEB"] + "/digits")
    print(r.status_code, r.text)
    r = s.post(os.environ["APP"] + "/echo", data=(b"part" for i in range(3)), headers={"Authorization": "Bearer none"})
    print(r.text)`), fmt.Sprintf("200 0123456789\nPOST HTTP/1.1 12 %x Bearer none\n\n", sha256.Sum256([]byte("partpartpart")))},
		{"datagrams", python(`
import os, socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.settimeout(20)
s.connect(("app.test", int(os.environ["DATAGRAMS"])))
for message in [b"one", b"x" * 8000]:
    s.send(message)
    print(s.recv(10000) == message)`), "True\nTrue\n"},
		{"port of the host", `curl http://host.matchlock.internal:$PLAIN/protocol`, "HTTP/1.1 host.matchlock.internal\n"},
		{"another name server", `cp /etc/resolv.conf /tmp && echo nameserver 8.8.8.8 >/etc/resolv.conf && getent hosts web.test; cat /tmp/resolv.conf >/etc/resolv.conf`, "198\\.1[89]\\..* +web.test\n"},
		{"git over https", `cd $(mktemp -d) && git clone -q $WEB/repo.git && cat repo/hello`, "hello from git\n"},
		{"git over ssh", `cd $(mktemp -d) && export GIT_SSH_COMMAND='ssh -i /client/key -o UserKnownHostsFile=/client/known_hosts -o StrictHostKeyChecking=yes'
			git clone -q ssh://git@git.test:$GIT$DIR/repo.git && cat repo/hello && cd repo &&
			git -c user.name=guest -c user.email=guest@box.test commit -q --allow-empty -m pushed && git push -q origin HEAD:$(hostname)`, "hello from git\n"},
		{"pip download", `cd $(mktemp -d) && pip download -q --disable-pip-version-check --index-url $WEB/simple tiny && ls`, "tiny-1.0-py3-none-any.whl\n"},
		{"apt-get", `rm -f /etc/apt/sources.list.d/* && echo "deb [trusted=yes] $WEB/apt ./" >/etc/apt/sources.list &&
			apt-get -qq update && apt-get -qq install tiny >/dev/null 2>&1 </dev/null; cat /opt/tiny`, "hello from a package\n"},
		{"psql", `psql -h sql.test -p $SQL -U postgres -At -c 'select sum(n) from generate_series(1, 100000) n' -c "select length(repeat('x', 2000000))"`, "5000050000\n2000000\n"},
	}
}

// eventStream is a client that acknowledges each event, which the server waits for.
func eventStream(url string) client {
	return client{"server-sent events", `curl -N "` + url + `/events?reader=$(hostname)" | while read -r line; do case $line in
		"data: "[0-9]) echo "$line"; curl "` + url + `/ack?reader=$(hostname)&n=${line#data: }";;
		?*) echo "$line";; esac; done`, "data: 0\ndata: 1\ndata: 2\ndata: done\n"}
}

// python is a script of sh that has python run another.
func python(script string) string { return "python3 - <<'PYTHON'\n" + script + "\nPYTHON" }

// call has the guest run a script, whose curl says nothing but errors.
func (m *installed) call(t *testing.T, box, script string) result {
	t.Helper()
	return m.run(t, nil, "exec", box, "sh", "-c", "curl() { command curl -sS --max-time 60 \"$@\"; }\n"+script)
}

// work has a guest's clients do what they do.
func (m *installed) work(t *testing.T, box string, clients []client) {
	for _, c := range clients {
		t.Run(c.name, func(t *testing.T) {
			r := m.call(t, box, c.script)
			if r.status != 0 || !regexp.MustCompile("^(?:"+c.want+")$").MatchString(r.stdout) || strings.TrimSpace(r.stderr) != "" {
				t.Errorf("status %d, said\n%s%s\nwant\n%s", r.status, r.stdout, r.stderr, c.want)
			}
			t.Log(r.took)
		})
	}
}
