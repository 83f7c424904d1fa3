package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/cli/ui"
	"github.com/banger-dev/banger/internal/errs"
)

// daemonView is the daemon.
type daemonView struct {
	Running    bool   `json:"running" doc:"whether it answers"`
	Version    string `json:"version,omitempty" doc:"of the daemon"`
	Commit     string `json:"commit,omitempty" doc:"of the daemon"`
	API        uint32 `json:"api,omitempty" doc:"number of the contract it speaks"`
	PID        int64  `json:"pid,omitempty" doc:"its process"`
	Started    string `json:"started,omitempty" doc:"RFC 3339, UTC"`
	VMsRunning uint32 `json:"vms_running" doc:"VMs that run"`
	StateDir   string `json:"state_dir,omitempty" doc:"database, VMs, logs"`
	DataDir    string `json:"data_dir,omitempty" doc:"images, kernels, templates"`
	ConfigPath string `json:"config_path,omitempty" doc:"settings"`
	LogPath    string `json:"log_path,omitempty" doc:"the daemon's log"`
	ExecPath   string `json:"exec_path,omitempty" doc:"the daemon's program"`
	Socket     string `json:"socket,omitempty" doc:"where it is spoken to"`
}

func viewDaemon(i *bangerv1.InfoResponse, socket string) daemonView {
	return daemonView{
		Running: true, Version: i.GetVersion(), Commit: i.GetCommit(), API: i.GetApi(), PID: i.GetPid(), Started: stamp(i.GetStarted()),
		VMsRunning: i.GetVmsRunning(), StateDir: i.GetStateDir(), DataDir: i.GetDataDir(), ConfigPath: i.GetConfigPath(), LogPath: i.GetLogPath(), ExecPath: i.GetExecPath(), Socket: socket,
	}
}

func showDaemon(a *app, i *bangerv1.InfoResponse) error {
	l, err := a.layout()
	if err != nil {
		return err
	}
	v := viewDaemon(i, l.Socket())
	if a.ui.JSON {
		return a.ui.JSONValue(v)
	}
	up := ""
	if d, ok := since(i.GetStarted()); ok {
		up = ", up " + ui.Age(d)
	}
	return a.ui.Fields([][2]string{
		{"daemon", fmt.Sprintf("running, pid %d%s", v.PID, up)}, {"version", v.Version + " " + v.Commit}, {"program", v.ExecPath}, {"vms", fmt.Sprintf("%d running", v.VMsRunning)},
		{"socket", v.Socket}, {"state", v.StateDir}, {"data", v.DataDir}, {"config", v.ConfigPath}, {"log", v.LogPath},
	})
}

func newDaemonStatus(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Say whether the daemon runs (status 3 where it does not)",
		Example: "banger daemon status\nbanger daemon status --json | jq .pid",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDaemonStatus(cmd.Context(), a)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	return a.declare(cmd, verb{effect: effectRead, shape: shapeObject, output: daemonView{}, local: true})
}

func runDaemonStatus(ctx context.Context, a *app) error {
	c, err := a.dialRunning(ctx)
	if err == nil {
		i, err := c.Connect(ctx)
		if err != nil {
			return err
		}
		return showDaemon(a, i)
	}
	if errs.CodeOf(err) != "daemon_not_running" {
		return err
	}
	if a.ui.JSON {
		if err := a.ui.JSONValue(daemonView{}); err != nil {
			return err
		}
		return statusError(errs.NotFound.ExitStatus())
	}
	if err := a.ui.Print("daemon  not running (it starts when needed)"); err != nil {
		return err
	}
	return statusError(errs.NotFound.ExitStatus())
}

func newDaemonStart(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "start",
		Short:   "Start the daemon; other verbs do so when they need it",
		Example: "banger daemon start\nbanger daemon start --json",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDaemonStart(cmd.Context(), a)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	return a.declare(cmd, verb{effect: effectIdempotent, shape: shapeObject, output: daemonView{}})
}

func runDaemonStart(ctx context.Context, a *app) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	i, err := c.Connect(ctx)
	if err != nil {
		return err
	}
	return showDaemon(a, i)
}

func newDaemonStop(a *app) *cobra.Command {
	var vms, yes bool
	cmd := &cobra.Command{
		Use:     "stop",
		Short:   "End the daemon; VMs run on",
		Long:    "End the daemon. VMs run on, and the next daemon takes them over; with --vms\nthey are stopped first.",
		Example: "banger daemon stop\nbanger daemon stop --vms -y",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDaemonStop(cmd.Context(), a, vms, yes)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVar(&vms, "vms", false, "stop all VMs first")
	cmd.Flags().BoolVarP(&yes, "yes", "y", false, "do not ask")
	return a.declare(cmd, verb{effect: effectIdempotent, shape: shapeObject, output: daemonView{}, local: true})
}

func runDaemonStop(ctx context.Context, a *app, vms, yes bool) error {
	c, err := a.newClient(false)
	if err != nil {
		return err
	}
	// a daemon of another contract is stopped as well: that is what the error
	// about it tells the user to do
	resp, err := c.System.Info(ctx, connect.NewRequest(&bangerv1.InfoRequest{}))
	if errs.CodeOf(err) == "daemon_not_running" {
		return stoppedDaemon(a)
	}
	if err != nil {
		return err
	}
	if n := resp.Msg.GetVmsRunning(); vms && !yes && n > 0 && !a.ui.JSON {
		if err := a.ui.Confirm(ctx, fmt.Sprintf("stop %s?", count(int(n), "running VM"))); err != nil {
			return err
		}
	}
	if _, err := c.System.Shutdown(ctx, connect.NewRequest(&bangerv1.ShutdownRequest{StopVms: vms})); err != nil && errs.CodeOf(err) != "daemon_connection_lost" {
		return err
	}
	if err := awaitEnd(ctx, int(resp.Msg.GetPid())); err != nil {
		return err
	}
	return stoppedDaemon(a)
}

func stoppedDaemon(a *app) error {
	if a.ui.JSON {
		return a.ui.JSONValue(daemonView{})
	}
	return nil
}

// awaitEnd waits until a daemon's process has ended: until then it holds its
// lock, and no other can start.
func awaitEnd(ctx context.Context, pid int) error {
	if pid <= 1 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it has ended
	}
	defer unix.Close(fd)
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 100)
		switch {
		case n > 0:
			return nil
		case err != nil && !errors.Is(err, unix.EINTR):
			return errs.Wrap(err, errs.Internal, "daemon_stop", "cannot wait for bangerd to end")
		case ctx.Err() != nil:
			return errs.Wrap(ctx.Err(), errs.KindOf(ctx.Err()), "daemon_stop_timeout", "bangerd (pid %d) has not ended", pid)
		}
	}
}

func newDaemonLogs(a *app) *cobra.Command {
	var follow bool
	var tail int32
	cmd := &cobra.Command{
		Use:     "logs",
		Short:   "Show the daemon's log",
		Example: "banger daemon logs --tail 50\nbanger daemon logs -f",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if tail < 0 {
				return usage("--tail %d: a number of lines", tail)
			}
			return runDaemonLogs(cmd.Context(), a, follow, int(tail))
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what comes")
	cmd.Flags().Int32Var(&tail, "tail", 0, "only the last `N` lines")
	return a.declare(cmd, verb{effect: effectRead, shape: shapeLines, output: logLine{}, local: true})
}

func runDaemonLogs(ctx context.Context, a *app, follow bool, tail int) error {
	l, err := a.layout()
	if err != nil {
		return err
	}
	f, err := os.Open(l.DaemonLog())
	if errors.Is(err, os.ErrNotExist) {
		return errs.New(errs.NotFound, "daemon_log_missing", "no daemon has written a log yet").WithHint("banger daemon start")
	}
	if err != nil {
		return errs.Wrap(err, errs.Denied, "daemon_log", "cannot read the daemon's log")
	}
	defer f.Close()
	if tail > 0 {
		if err := seekTail(f, tail); err != nil {
			return err
		}
	}
	var w io.WriteCloser = a.ui.LogWriter()
	if a.ui.JSON {
		w = logJSON{a}
	}
	defer w.Close()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for {
		if _, err := io.Copy(w, f); err != nil {
			return err
		}
		if !follow {
			return nil
		}
		select {
		case <-ctx.Done():
			return ended(ctx, true, ctx.Err())
		case <-tick.C:
		}
		f = reopened(f, l.DaemonLog())
	}
}

// reopened is the log's file again after it was rotated or cut, else f.
func reopened(f *os.File, path string) *os.File {
	now, err := os.Stat(path)
	was, err2 := f.Stat()
	if err != nil || err2 != nil || os.SameFile(now, was) {
		return f
	}
	n, err := os.Open(path)
	if err != nil {
		return f
	}
	_ = f.Close()
	return n
}

// seekTail moves to the beginning of the last n lines.
func seekTail(f *os.File, n int) error {
	starts := make([]int64, 0, n)
	var at int64
	r := bufio.NewReader(f)
	for {
		line, err := r.ReadSlice('\n')
		if len(line) > 0 && (at == 0 || len(starts) == 0 || starts[len(starts)-1] != at) {
			if len(starts) == n {
				starts = append(starts[:0], starts[1:]...)
			}
			starts = append(starts, at)
		}
		for errors.Is(err, bufio.ErrBufferFull) {
			at += int64(len(line))
			line, err = r.ReadSlice('\n')
		}
		at += int64(len(line))
		if err != nil {
			break
		}
	}
	if len(starts) == 0 {
		return nil
	}
	_, err := f.Seek(starts[0], io.SeekStart)
	return err
}

// logJSON writes a log as JSON lines.
type logJSON struct{ a *app }

func (l logJSON) Write(p []byte) (int, error) {
	return len(p), l.a.ui.JSONLine(logLine{Source: "daemon", Data: string(p)})
}

func (logJSON) Close() error { return nil }
