package cli

import (
	"context"
	"errors"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/apiclient"
)

// logsOptions are those of vm logs.
type logsOptions struct {
	vm                          string
	console, daemon, hypervisor bool
	follow                      bool
	tail                        int32
}

// logLine is a piece of a log with --json.
type logLine struct {
	Source string `json:"source" doc:"console, daemon or hypervisor"`
	Data   string `json:"data" doc:"the text as it came; bytes that are no UTF-8 become U+FFFD"`
}

func newVMLogs(a *app) *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{
		Use:     "logs NAME",
		Short:   "Show what a VM's console and banger said of it",
		Example: "banger logs web -f\nbanger logs web --console --tail 50",
		Args:    args(1, 1, "the name of a VM"),
		RunE: func(cmd *cobra.Command, args []string) error {
			o.vm = args[0]
			if o.tail < 0 {
				return usage("--tail %d: a number of lines", o.tail)
			}
			return runVMLogs(cmd.Context(), a, o)
		},
		ValidArgsFunction: firstVM(a),
	}
	fs := cmd.Flags()
	fs.BoolVarP(&o.follow, "follow", "f", false, "go on with what comes")
	fs.Int32Var(&o.tail, "tail", 0, "only the last `N` lines")
	fs.BoolVar(&o.console, "console", false, "only the guest's console")
	fs.BoolVar(&o.daemon, "daemon", false, "only what banger did with it")
	fs.BoolVar(&o.hypervisor, "hypervisor", false, "only what the hypervisor said")
	return a.declare(cmd, verb{effect: effectRead, shape: shapeLines, output: logLine{}})
}

func runVMLogs(ctx context.Context, a *app, o logsOptions) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	stream, err := c.VMs.Logs(ctx, connect.NewRequest(&bangerv1.LogsRequest{
		Vm: o.vm, Console: o.console, Daemon: o.daemon, Hypervisor: o.hypervisor, Follow: o.follow, Tail: o.tail,
	}))
	if err != nil {
		return apiclient.Translate(err)
	}
	defer func() { _ = stream.Close() }()
	w := a.ui.LogWriter()
	for stream.Receive() {
		m := stream.Msg()
		if a.ui.JSON {
			err = a.ui.JSONLine(logLine{Source: m.GetSource(), Data: string(m.GetData())})
		} else {
			_, err = w.Write(m.GetData())
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(w.Close(), ended(ctx, o.follow, stream.Err()))
}

// ended is the end of a stream: Ctrl-C is how one leaves a stream that is
// followed, and no failure.
func ended(ctx context.Context, follow bool, err error) error {
	var by interrupted
	if follow && errors.As(context.Cause(ctx), &by) {
		return statusError(128 + int(by.sig))
	}
	return apiclient.Translate(err)
}
