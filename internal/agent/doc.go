// Package agent answers how the host has something done in the guest: commands
// run, files written and read, ports reached, unix sockets led to the host, and the machine itself set up and
// told of the world. It holds both ends of each protocol: Client and Control on
// the host, Server and ServeControl in the guest.
//
// It does not decide who may do what, knows no hypervisor, and starts processes
// only through a Starter.
//
// # The agent's protocol
//
// A stream to wire.PortAgent is one request: its first frame says what is
// wanted, the answers follow, and the stream ends with the request. Frames and
// values are those of package wire; protocol.go lists them. A command's input
// has a window of its own inside the stream, so that a signal never waits
// behind input which nobody reads; its output has the stream's, so that a
// reader who stops holds up that command and nothing else.
//
// Files travel one at a time or as a tree: nodes in an order by which no path
// comes twice and no folder is entered that was not named before. What is
// below a folder is reached from it step by step, through no symbolic link.
//
// The host believes nothing: what a guest says is bounded, checked and made
// printable, and the first answer has to come within answerTime. The guest
// trusts the host, but an ended stream ends what was asked for on it: a
// command's process group gets SIGTERM (on a terminal SIGHUP), and SIGKILL
// after killGrace.
//
// # What a command leaves behind
//
// A request ends when the command's first process has ended and what was
// written until then has been sent. Children that live on keep their files:
// what they write is read and dropped, so that they neither block nor die of it.
package agent
