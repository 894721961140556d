package control

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"syscall"
	"time"
)

// maxFiles bounds the files that one call hands over (Linux: SCM_MAX_FD is 253).
const maxFiles = 128

// filesReady is what a client sends when it has read the result: a descriptor that
// came together with what was read before it would be lost.
const filesReady = 'f'

// SendFiles answers with result and hands the client files, which stay the
// caller's.
func (c *Call) SendFiles(result any, files []*os.File) error {
	if len(files) == 0 || len(files) > maxFiles {
		return fmt.Errorf("method %q: %d files to be handed over", c.method, len(files))
	}
	if err := c.take(result); err != nil {
		return err
	}
	c.conn.SetDeadline(time.Now().Add(lineTime))
	if b, err := c.in.ReadByte(); err != nil || b != filesReady {
		return errors.Join(errors.New("control socket: the client wants no files"), err)
	}
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	_, _, err := c.conn.WriteMsgUnix([]byte{filesReady}, syscall.UnixRights(fds...), nil)
	return err
}

// Files calls a method that hands over files. They are the caller's.
func (c *Client) Files(ctx context.Context, method string, params, result any) (files []*os.File, err error) {
	k, err := c.begin(ctx, method, params)
	if err != nil {
		return nil, err
	}
	defer k.conn.Close()
	defer context.AfterFunc(ctx, func() { k.conn.Close() })()
	if err := k.finish(ctx, result, time.Time{}); err != nil {
		return nil, err
	}
	k.conn.SetDeadline(time.Now().Add(lineTime))
	if _, err := k.conn.Write([]byte{filesReady}); err != nil {
		return nil, broken(ctx, err)
	}
	files, err = receiveFiles(k.conn, method)
	if err != nil {
		return nil, broken(ctx, err)
	}
	return files, nil
}

func receiveFiles(conn *net.UnixConn, name string) (files []*os.File, err error) {
	var b [1]byte
	space := make([]byte, syscall.CmsgSpace(4*maxFiles))
	_, n, flags, _, err := conn.ReadMsgUnix(b[:], space)
	if err != nil {
		return nil, err
	}
	messages, err := syscall.ParseSocketControlMessage(space[:n])
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	for i := range messages {
		fds, err := syscall.ParseUnixRights(&messages[i])
		if err != nil {
			continue // something else, and no descriptor of ours
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), name))
		}
	}
	if flags&syscall.MSG_CTRUNC != 0 || len(files) == 0 {
		for _, f := range files {
			f.Close()
		}
		return nil, errors.New("control socket: files did not arrive")
	}
	return files, nil
}
