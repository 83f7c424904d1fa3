package apiclient

import (
	"context"
	"errors"
	"io"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
)

const dialChunk = 32 << 10

// Dial joins in and out to an address inside a guest ("tcp" "127.0.0.1:22",
// "unix" path, "agent" "ssh") until the guest's side ends. in.Close must make
// a Read that is under way return.
func (c *Client) Dial(ctx context.Context, vm, network, address string, in io.ReadCloser, out io.Writer) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := c.VMs.Dial(ctx)
	defer func() { _ = stream.CloseResponse() }()
	head := &bangerv1.DialRequest{Input: &bangerv1.DialRequest_Head{Head: &bangerv1.DialHead{Vm: vm, Network: network, Address: address}}}
	if err := stream.Send(head); err != nil && !errors.Is(err, io.EOF) {
		return Translate(err)
	}
	// the transport does not look at ctx while it waits for input
	defer context.AfterFunc(ctx, func() { _ = in.Close() })()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		buf := make([]byte, dialChunk)
		for {
			n, err := in.Read(buf)
			if n > 0 {
				m := &bangerv1.DialRequest{Input: &bangerv1.DialRequest_Data{Data: append([]byte(nil), buf[:n]...)}}
				if stream.Send(m) != nil {
					return // Receive tells why
				}
			}
			if err != nil {
				_ = stream.CloseRequest()
				return
			}
		}
	}()
	defer func() { cancel(); _ = in.Close(); <-sent }()
	for {
		m, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return Translate(err)
		}
		if _, err := out.Write(m.GetData()); err != nil {
			return &OutputError{err}
		}
	}
}
