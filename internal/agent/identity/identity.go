// Package identity makes a guest the VM it is named: everything of
// wire.Identity, in one list of steps, each measured and repeatable. It is the
// one place that knows what is a VM's (or a clone's) own; docs/identity.md is
// its prose twin and says what stays shared.
//
// Files of the image are written through agent/inroot and failures to write
// one are warnings, for an image may be anything; what the kernel holds
// (entropy, clock, name, addresses) has to succeed.
package identity

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/banger-dev/banger/internal/agent/inroot"
	"github.com/banger-dev/banger/internal/agent/netcfg"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// Machine is what identity changes outside of files. Real is the guest's; a
// test brings its own.
type Machine interface {
	// SetToken replaces the secret by which the guest proves itself.
	SetToken(token []byte)
	// AddEntropy mixes in and credits bytes, and reseeds the generator.
	AddEntropy(b []byte) error
	// SetClock steps the wall clock.
	SetClock(t time.Time) error
	SetHostname(name string) error
	// ShowBootID shows another boot id in place of the kernel's.
	ShowBootID(id string) error
	// Network brings the loopback up and gives the network card its
	// configuration, unless that is empty.
	Network(c netcfg.Config) error
}

// Guest is where an identity goes.
type Guest struct {
	Root    *inroot.Root // the guest's "/"
	Home    *inroot.Root // root's home, which may be another filesystem
	Machine Machine
}

// errSkip says that a step has nothing to do and is not listed.
var errSkip = errors.New("nothing to do")

// step is one part of an identity. One that is not essential leaves a warning
// when it fails.
type step struct {
	name      string
	essential bool
	run       func() error
}

// Apply gives the guest its identity. All of it is checked before anything is
// changed; an essential step that fails ends it with an error, and doing it
// again is allowed.
func Apply(ctx context.Context, g Guest, id wire.Identity) (wire.IdentityReply, error) {
	var reply wire.IdentityReply
	net, err := check(id)
	if err != nil {
		return reply, errs.Wrap(err, errs.Invalid, "bad_identity", "identity")
	}
	for _, s := range steps(g, id, net) {
		if err := ctx.Err(); err != nil {
			return reply, err
		}
		start := time.Now()
		err := s.run()
		if errors.Is(err, errSkip) {
			continue
		}
		took := time.Since(start)
		reply.Steps = append(reply.Steps, wire.Step{Name: s.name, Micros: uint64(max(took.Microseconds(), 0))})
		switch {
		case err == nil:
		case s.essential:
			return reply, errs.Wrap(err, errs.Internal, "identity_failed", "identity: %s", s.name)
		default:
			reply.Warnings = append(reply.Warnings, fmt.Sprintf("%s: %v", s.name, err))
		}
	}
	return reply, nil
}

// steps is the one list. Entropy comes first: nothing after it may draw on
// numbers that a template's other clones share.
func steps(g Guest, id wire.Identity, net netcfg.Config) []step {
	f := files{root: g.Root, home: g.Home}
	m := g.Machine
	return []step{
		{"token", true, func() error { m.SetToken(id.Token); return nil }},
		{"entropy", true, func() error { return m.AddEntropy(id.Entropy) }},
		{"clock", true, unless(id.ClockUnixNS == 0, func() error { return m.SetClock(time.Unix(0, id.ClockUnixNS)) })},
		{"hostname", true, unless(id.Hostname == "", func() error { return m.SetHostname(id.Hostname) })},
		{"hostname files", false, unless(id.Hostname == "", func() error { return f.hostname(id.Hostname) })},
		{"machine id", false, unless(id.MachineID == "", func() error { return f.machineID(id.MachineID) })},
		{"boot id", false, unless(id.BootID == "", func() error { return m.ShowBootID(id.BootID) })},
		{"host key", false, unless(len(id.HostKey) == 0, func() error { return f.hostKey(id.HostKey, id.HostKeyPub) })},
		{"authorized keys", false, func() error { return f.authorizedKeys(id.Authorized) }},
		{"sshd", false, f.sshd},
		{"network", true, func() error { return m.Network(net) }},
		{"resolver", false, unless(len(id.Net.DNS) == 0, func() error { return f.resolver(id.Net.DNS) })},
		{"timezone", false, unless(id.Timezone == "", func() error { return f.timezone(id.Timezone) })},
		{"environment", false, func() error { return f.environment(id.Env) }},
	}
}

func unless(nothing bool, run func() error) func() error {
	if nothing {
		return func() error { return errSkip }
	}
	return run
}
