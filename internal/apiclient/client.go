// Package apiclient is the one way from a program on this machine to the
// daemon: it finds the daemon's socket, starts bangerd when nothing answers
// there, refuses a daemon that speaks another contract, and turns failures
// back into *errs.Error. It prints nothing and holds no logic of VMs.
//
// Its neighbours are the contract (internal/api) below and the CLI above.
package apiclient

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/api/banger/v1/bangerv1connect"
	"github.com/banger-dev/banger/internal/buildinfo"
	"github.com/banger-dev/banger/internal/errs"
)

const (
	startPoll  = 5 * time.Millisecond   // between two questions to a daemon that starts
	startAgain = 200 * time.Millisecond // until another is started when one found the lock held
)

// maxMessage bounds what one message of the daemon may be (bytes).
const maxMessage = 16 << 20

// Options says where the daemon is and what to do when it is not.
type Options struct {
	// Socket is the daemon's Unix socket.
	Socket string
	// Start starts a daemon and returns once it was asked to; nil: none is
	// started and a silent socket is an error. It must be safe to call twice.
	Start func(context.Context) (*Starting, error)
	// StartBudget is how long a daemon may take until it answers; 0 is 15 s.
	StartBudget time.Duration
	// Log is the daemon's log, named in errors.
	Log string
	// Trace, if set, is told of every call: "VMService/List 3ms".
	Trace func(string)
}

// Client speaks to one daemon. It is safe for concurrent use.
type Client struct {
	o    Options
	http *http.Client

	VMs        bangerv1connect.VMServiceClient
	Workspaces bangerv1connect.WorkspaceServiceClient
	Images     bangerv1connect.ImageServiceClient
	Kernels    bangerv1connect.KernelServiceClient
	Templates  bangerv1connect.TemplateServiceClient
	System     bangerv1connect.SystemServiceClient

	mu   sync.Mutex
	info *bangerv1.InfoResponse
}

// New makes a client; it connects to nothing yet.
func New(o Options) *Client {
	if o.StartBudget == 0 {
		o.StartBudget = 15 * time.Second
	}
	var protocols http.Protocols
	protocols.SetUnencryptedHTTP2(true)
	c := &Client{o: o}
	c.http = &http.Client{Transport: &http.Transport{
		Protocols: &protocols,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", o.Socket)
		},
		DisableCompression: true,
		HTTP2:              &http.HTTP2Config{MaxReadFrameSize: 256 << 10},
	}}
	opts := []connect.ClientOption{
		connect.WithReadMaxBytes(maxMessage),
		connect.WithAcceptCompression("gzip", nil, nil), // the socket is quicker than gzip
		connect.WithInterceptors(translator{trace: o.Trace}),
	}
	const base = "http://bangerd"
	c.VMs = bangerv1connect.NewVMServiceClient(c.http, base, opts...)
	c.Workspaces = bangerv1connect.NewWorkspaceServiceClient(c.http, base, opts...)
	c.Images = bangerv1connect.NewImageServiceClient(c.http, base, opts...)
	c.Kernels = bangerv1connect.NewKernelServiceClient(c.http, base, opts...)
	c.Templates = bangerv1connect.NewTemplateServiceClient(c.http, base, opts...)
	c.System = bangerv1connect.NewSystemServiceClient(c.http, base, opts...)
	return c
}

// Close drops idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Connect makes sure that a daemon of this contract answers, starting one
// where that is allowed. Errors: daemon_unreachable, daemon_not_running,
// daemon_start_failed, api_mismatch.
func (c *Client) Connect(ctx context.Context) (*bangerv1.InfoResponse, error) {
	c.mu.Lock()
	info := c.info
	c.mu.Unlock()
	if info != nil {
		return info, nil
	}
	return c.Reconnect(ctx)
}

// Reconnect is Connect for a client whose daemon went away.
func (c *Client) Reconnect(ctx context.Context) (*bangerv1.InfoResponse, error) {
	info, err := c.ask(ctx)
	if err != nil && Lost(err) {
		info, err = c.startAndAsk(ctx, err)
	}
	if err != nil {
		return nil, err
	}
	if err := matches(info); err != nil {
		return nil, err
	}
	c.mu.Lock()
	c.info = info
	c.mu.Unlock()
	return info, nil
}

func (c *Client) ask(ctx context.Context) (*bangerv1.InfoResponse, error) {
	resp, err := c.System.Info(ctx, connect.NewRequest(&bangerv1.InfoRequest{}))
	if err != nil {
		return nil, err
	}
	return resp.Msg, nil
}

func (c *Client) startAndAsk(ctx context.Context, cause error) (*bangerv1.InfoResponse, error) {
	if c.o.Start == nil {
		return nil, cause
	}
	ctx, cancel := context.WithTimeoutCause(ctx, c.o.StartBudget, errStartBudget)
	defer cancel()
	starting, err := c.o.Start(ctx)
	if err != nil {
		return nil, err
	}
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	ended := starting.Ended
	var again <-chan time.Time
	for {
		info, err := c.ask(ctx)
		if err == nil {
			return info, nil
		}
		if !Lost(err) && ctx.Err() == nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, c.notStarted(ctx, starting)
		case status := <-ended:
			if status != "" {
				return nil, errs.New(errs.Unavailable, "daemon_start_failed", "bangerd ended at its start: %s", status).WithHint("%s", c.lookAtLog(starting))
			}
			// another one holds the lock: it is just starting, or ending
			ended, again = nil, time.After(startAgain)
		case <-again:
			if starting, err = c.o.Start(ctx); err != nil {
				return nil, err
			}
			ended, again = starting.Ended, nil
		case <-tick.C:
		}
	}
}

// notStarted says why the wait for a daemon ended.
func (c *Client) notStarted(ctx context.Context, starting *Starting) error {
	if errors.Is(context.Cause(ctx), errStartBudget) {
		return errs.New(errs.Timeout, "daemon_start_timeout", "bangerd did not answer within %s of starting", c.o.StartBudget).WithHint("%s", c.lookAtLog(starting))
	}
	return errs.Wrap(ctx.Err(), errs.Cancelled, "cancelled", "starting bangerd")
}

var errStartBudget = errors.New("start budget")

func (c *Client) lookAtLog(s *Starting) string {
	if l := s.LastLine(); l != "" {
		return fmt.Sprintf("last line of its log: %s\nless %s", l, c.o.Log)
	}
	return "less " + c.o.Log
}

// matches refuses a daemon that speaks another contract, with what to do.
func matches(info *bangerv1.InfoResponse) error {
	mine := buildinfo.Get()
	switch {
	case info.GetApi() == mine.API:
		return nil
	case info.GetApi() < mine.API:
		return errs.New(errs.Unsupported, "api_mismatch", "the running bangerd %s is older than this banger %s", info.GetVersion(), mine.Version).
			WithHint("banger daemon stop, then try again: the new daemon takes over the running VMs")
	}
	return errs.New(errs.Unsupported, "api_mismatch", "the running bangerd %s is newer than this banger %s", info.GetVersion(), mine.Version).
		WithHint("use the banger that belongs to it, beside %s", info.GetExecPath())
}
