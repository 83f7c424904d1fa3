package apiclient

import (
	"bytes"
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
)

const copyChunk = 64 << 10

// CopyIn sends a tar stream that the guest unpacks in head's directory.
func (c *Client) CopyIn(ctx context.Context, head *bangerv1.CopyInHead, tar io.Reader) (*bangerv1.CopyResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream := c.VMs.CopyIn(ctx)
	err := stream.Send(&bangerv1.CopyInRequest{Input: &bangerv1.CopyInRequest_Head{Head: head}})
	buf := make([]byte, copyChunk)
	for err == nil {
		n, rerr := io.ReadFull(tar, buf)
		if n > 0 {
			err = stream.Send(&bangerv1.CopyInRequest{Input: &bangerv1.CopyInRequest_Data{Data: bytes.Clone(buf[:n])}})
		}
		if rerr != nil && !errors.Is(rerr, io.EOF) && !errors.Is(rerr, io.ErrUnexpectedEOF) {
			return nil, rerr // cancelling makes the guest drop what is half done
		}
		if rerr != nil {
			break
		}
	}
	// after an error of Send the answer tells the reason
	resp, err := stream.CloseAndReceive()
	if err != nil {
		return nil, Translate(err)
	}
	return resp.Msg, nil
}

// CopyOut gives paths of the guest as a tar stream, hostile bytes; Close ends
// it.
func (c *Client) CopyOut(ctx context.Context, req *bangerv1.CopyOutRequest) (io.ReadCloser, error) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := c.VMs.CopyOut(ctx, connect.NewRequest(req))
	if err != nil {
		cancel()
		return nil, Translate(err)
	}
	return &copyOut{stream: stream, cancel: cancel}, nil
}

type copyOut struct {
	stream *connect.ServerStreamForClient[bangerv1.CopyOutResponse]
	cancel context.CancelFunc
	rest   []byte
}

func (o *copyOut) Read(p []byte) (int, error) {
	for len(o.rest) == 0 {
		if !o.stream.Receive() {
			if err := o.stream.Err(); err != nil {
				return 0, Translate(err)
			}
			return 0, io.EOF
		}
		o.rest = o.stream.Msg().GetData()
	}
	n := copy(p, o.rest)
	o.rest = o.rest[n:]
	return n, nil
}

func (o *copyOut) Close() error {
	o.cancel()
	return o.stream.Close()
}
