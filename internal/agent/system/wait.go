package system

import (
	"bufio"
	"context"
	"errors"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/banger-dev/banger/internal/agent/boot"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/guest/wire"
)

// What Wait waits for.
const waitSystem = "system"

const (
	pollEvery   = 250 * time.Millisecond
	maxFailed   = 64
	maxUnitName = 256
)

// Wait returns when the image's init has settled: with systemd when its job
// queue is empty, and when Docker answers where it is meant to run.
func (s *System) Wait(ctx context.Context, req wire.WaitRequest) (wire.WaitReply, error) {
	if req.For != waitSystem {
		return wire.WaitReply{}, errs.New(errs.Invalid, "bad_wait", "wait for %q: want %q", req.For, waitSystem)
	}
	switch s.state() {
	case stateAlone:
		return wire.WaitReply{State: stateAlone}, nil
	case stateEarly:
		return wire.WaitReply{}, errNotUp
	}
	systemctl, err := exec.LookPath("systemctl")
	if err != nil || !boot.IsSystemd(s.handoff.Init) {
		return wire.WaitReply{State: "running"}, nil // an init that cannot be asked
	}
	reply, err := settle(ctx, systemctl)
	if err != nil {
		return reply, err
	}
	if dockerWanted("/etc/systemd/system") && !slices.Contains(reply.Failed, "docker.service") {
		if err := waitDocker(ctx, systemctl); err != nil {
			return reply, err
		}
		return settle(ctx, systemctl) // starting it on its socket may have failed
	}
	return reply, nil
}

// settle waits for systemd's job queue to be empty.
func settle(ctx context.Context, systemctl string) (wire.WaitReply, error) {
	for {
		// A system that is still coming up may not answer at all.
		out, _ := exec.CommandContext(ctx, systemctl, "is-system-running", "--wait").Output()
		switch state := strings.TrimSpace(string(out)); state {
		case "running":
			return wire.WaitReply{State: state}, nil
		case "degraded":
			list, err := exec.CommandContext(ctx, systemctl, "list-units", "--failed", "--plain", "--no-legend", "--full").Output()
			return wire.WaitReply{State: state, Failed: failedUnits(string(list))}, err
		case "maintenance", "stopping":
			return wire.WaitReply{State: state}, errs.New(errs.Unavailable, "system_"+state, "the guest's system is %s", state)
		}
		if err := pause(ctx, pollEvery); err != nil {
			return wire.WaitReply{}, err
		}
	}
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// failedUnits reads the names off systemctl's list.
func failedUnits(list string) []string {
	var names []string
	for l := range strings.Lines(list) {
		f := strings.Fields(strings.TrimPrefix(strings.TrimSpace(l), "●"))
		if len(f) > 0 && len(f[0]) <= maxUnitName && len(names) < maxFailed {
			names = append(names, f[0])
		}
	}
	return names
}

// dockerWanted says whether Docker is enabled, as service or on its socket.
func dockerWanted(units string) bool {
	for _, p := range []string{"multi-user.target.wants/docker.service", "sockets.target.wants/docker.socket"} {
		if _, err := os.Lstat(units + "/" + p); err == nil {
			return true
		}
	}
	return false
}

const dockerSocket = "/run/docker.sock"

// waitDocker waits until Docker answers a ping, or has failed.
func waitDocker(ctx context.Context, systemctl string) error {
	for {
		err := pingDocker(ctx, dockerSocket)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil {
			return errs.Wrap(err, errs.Timeout, "docker_silent", "docker does not answer")
		}
		if exec.CommandContext(ctx, systemctl, "is-failed", "--quiet", "docker.service").Run() == nil {
			return nil // the list of failed units says it
		}
		if err := pause(ctx, pollEvery); err != nil {
			return err
		}
	}
}

// pingDocker asks for /_ping. Connecting starts Docker where it waits on its
// socket, and then the answer takes as long as the start.
func pingDocker(ctx context.Context, socket string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if _, err := conn.Write([]byte("GET /_ping HTTP/1.0\r\nHost: docker\r\n\r\n")); err != nil {
		return err
	}
	status, err := bufio.NewReaderSize(conn, 256).ReadSlice('\n')
	if err != nil {
		return err
	}
	if f := strings.Fields(string(status)); len(f) < 2 || f[1] != "200" {
		return errors.New("docker: answer " + strings.TrimSpace(string(status)))
	}
	return nil
}
