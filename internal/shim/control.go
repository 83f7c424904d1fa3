package shim

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// The control socket speaks JSON, one line each way: {"op":"status"} or
// {"op":"stop"}; the answer carries "error" where it went wrong.
type request struct {
	Op string `json:"op"`
}

type reply struct {
	Error  string  `json:"error,omitempty"`
	Report *Report `json:"report,omitempty"`
}

const (
	opStatus = "status"
	opStop   = "stop"

	maxRequest  = 4 << 10
	maxReply    = 256 << 10
	maxControls = 16
	controlIdle = 10 * time.Second
)

// control answers status and stop to the user who started the shim.
type control struct {
	ln     net.Listener
	uid    int // besides root, who may ask
	report func() Report
	stop   func()
}

// serve answers until ctx ends and every connection is done.
func (c *control) serve(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	stop := context.AfterFunc(ctx, func() { _ = c.ln.Close() }) // wakes Accept
	defer stop()
	slots := make(chan struct{}, maxControls)
	for {
		conn, err := c.ln.Accept()
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case slots <- struct{}{}:
		default:
			_ = conn.Close() // too many at once; ask again
			continue
		}
		wg.Go(func() {
			defer func() { <-slots }()
			defer conn.Close()
			wake := context.AfterFunc(ctx, func() { _ = conn.SetReadDeadline(time.Unix(1, 0)) }) // ends the reading
			defer wake()
			c.converse(conn)
		})
	}
}

func (c *control) converse(conn net.Conn) {
	if !c.mayAsk(conn) {
		return
	}
	if err := conn.SetDeadline(time.Now().Add(controlIdle)); err != nil {
		return
	}
	in := bufio.NewReader(io.LimitReader(conn, maxRequest))
	out := json.NewEncoder(conn)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		rep, stop := c.handle(line)
		if err := out.Encode(rep); err != nil {
			return
		}
		if stop {
			c.stop()
			return
		}
	}
}

func (c *control) handle(line []byte) (rep reply, stop bool) {
	var req request
	if err := json.Unmarshal(line, &req); err != nil {
		return reply{Error: "not a request"}, false
	}
	switch req.Op {
	case opStatus:
		r := c.report()
		return reply{Report: &r}, false
	case opStop:
		return reply{}, true
	}
	return reply{Error: "unknown op"}, false
}

// mayAsk checks the peer's user: the socket's mode says the same, but not on
// every filesystem.
func (c *control) mayAsk(conn net.Conn) bool {
	uc, ok := conn.(*net.UnixConn)
	if !ok {
		return false
	}
	raw, err := uc.SyscallConn()
	if err != nil {
		return false
	}
	var cred *unix.Ucred
	var cerr error
	err = raw.Control(func(fd uintptr) {
		cred, cerr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return err == nil && cerr == nil && (cred.Uid == 0 || int(cred.Uid) == c.uid)
}

// listen makes a socket that is 0600 from birth. Main has set the umask; a
// stale socket of a shim that was killed is replaced, anything else is not.
func listen(path string) (*net.UnixListener, error) {
	if st, err := os.Lstat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
	}
	return net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
}
