package system

import (
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"os/exec"
	"time"

	"github.com/banger-dev/banger/internal/agent/netcfg"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// Prepare readies the guest for being saved as a template: everything a clone
// does first is done once, so that its code is in memory and the kernel has
// patched itself for it, and everything is written out.
func (s *System) Prepare(ctx context.Context, req wire.PrepareRequest) (wire.PrepareReply, error) {
	if req.Rehearse {
		if err := s.rehearse(ctx, req); err != nil {
			return wire.PrepareReply{}, errs.Wrap(err, errs.Internal, "rehearsal_failed", "prepare for a snapshot")
		}
	}
	if err := s.Sync(ctx); err != nil {
		return wire.PrepareReply{}, err
	}
	return wire.PrepareReply{Clock: clockSource()}, nil
}

func (s *System) rehearse(ctx context.Context, req wire.PrepareRequest) error {
	// The token stays: the host has to know the guest until it is saved.
	id := rehearsal(s.Token(), req)
	if _, err := netcfg.Card("/sys"); err != nil { // a VM without a network
		id.MAC, id.Net = "", wire.Net{}
	}
	if _, err := s.apply(ctx, id); err != nil {
		return err
	}
	if _, err := s.Stats(ctx); err != nil {
		return err
	}
	for _, argv := range [][]string{{"/bin/sh", "-c", "true"}, {"/bin/true"}} {
		// An image may have neither; trying is what counts.
		_ = exec.CommandContext(ctx, argv[0], argv[1:]...).Run()
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
	}
	return rehearseTCP(ctx)
}

// rehearsal is an identity that every clone replaces, but for what the request
// says all clones have alike: a clone that finds that in place is spared the
// work. Without it addresses are of the ranges for documentation; the rest says
// what it is.
func rehearsal(token []byte, req wire.PrepareRequest) wire.Identity {
	random := make([]byte, 64+6)
	_, _ = rand.Read(random) // never fails
	mac := net.HardwareAddr(random[64:])
	mac[0] = mac[0]&0xfc | 2 // local, not multicast
	id := wire.Identity{
		Token:       token,
		VM:          "template",
		Hostname:    "template",
		MachineID:   "ffffffffffffffffffffffffffffffff",
		BootID:      "ffffffff-ffff-4fff-bfff-ffffffffffff",
		Entropy:     random[:64],
		ClockUnixNS: time.Now().UnixNano(),
		HostKey:     []byte("rehearsal\n"),
		HostKeyPub:  "rehearsal",
		Authorized:  []string{"# rehearsal"},
		MAC:         mac.String(),
		Net: wire.Net{
			IPv4: "192.0.2.2/24", Gateway4: "192.0.2.1",
			IPv6: "2001:db8::2/64", Gateway6: "2001:db8::1",
			DNS: []string{"192.0.2.1"}, MTU: 1400,
		},
	}
	if req.MAC != "" {
		id.MAC, id.Net = req.MAC, req.Net
	}
	if len(req.Authorized) > 0 {
		id.Authorized = req.Authorized
	}
	return id
}

// rehearseTCP makes one connection inside the guest: the first one changes the
// kernel's own code, which several vCPUs under emulation do not stand.
func rehearseTCP(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer l.Close()
	accepted := make(chan error, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, err = io.Copy(io.Discard, conn)
			conn.Close()
		}
		accepted <- err
	}()
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", l.Addr().String())
	if err != nil {
		l.Close()
		return errors.Join(err, <-accepted)
	}
	_, err = conn.Write([]byte("once"))
	return errors.Join(err, conn.Close(), <-accepted)
}
