package agent_test

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"testing"

	"github.com/banger-dev/banger/internal/guest/guesttest"
	"github.com/banger-dev/banger/internal/guest/wire"
)

func BenchmarkOutput(b *testing.B) {
	for _, g := range []*guesttest.Guest{guesttest.Unix(b), guesttest.Serial(b)} {
		b.Run(g.Endpoint.Kind, func(b *testing.B) {
			c := dial(b, g)
			b.SetBytes(1 << 20)
			p, err := c.Exec(b.Context(), wire.ExecRequest{Argv: []string{"head", "-c", fmt.Sprint(b.N << 20), "/dev/zero"}})
			if err != nil {
				b.Fatal(err)
			}
			defer p.Close()
			for {
				out, err := p.Recv()
				if err != nil {
					return
				}
				if out.Stdout != nil {
					end := out.Stdout.Off + uint64(len(out.Stdout.Data))
					p.Send(wire.ExecInput{AckStdout: &end})
				}
			}
		})
	}
}

func BenchmarkInput(b *testing.B) {
	c := dial(b, guesttest.Unix(b))
	b.SetBytes(1 << 20)
	data := make([]byte, b.N<<20)
	b.ResetTimer()
	if _, _, _, err := guesttest.Run(b.Context(), c, wire.ExecRequest{Argv: []string{"sh", "-c", "cat >/dev/null"}}, data); err != nil {
		b.Fatal(err)
	}
}

func BenchmarkTar(b *testing.B) {
	c := dial(b, guesttest.Unix(b))
	dir := b.TempDir()
	const size = 64 << 20
	var archive bytes.Buffer
	w := tar.NewWriter(&archive)
	w.WriteHeader(&tar.Header{Name: "big", Mode: 0o600, Size: size})
	w.Write(make([]byte, size))
	w.Close()
	b.Run("in", func(b *testing.B) {
		b.SetBytes(size)
		for range b.N {
			if _, err := c.TarIn(b.Context(), wire.TarInRequest{Dir: dir, Overwrite: true}, bytes.NewReader(archive.Bytes())); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("out", func(b *testing.B) {
		b.SetBytes(size)
		for range b.N {
			if _, err := c.TarOut(b.Context(), wire.TarOutRequest{Dir: dir}, io.Discard); err != nil {
				b.Fatal(err)
			}
		}
	})
}
