// Command bangerd is banger's daemon, one for each user: it keeps VMs, serves
// the API on a private socket, and is started by the first command that needs
// it. Its verbs shim, launch and hosted are the small processes beside VMs.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/banger-dev/banger/internal/buildinfo"
	"github.com/banger-dev/banger/internal/daemon"
	"github.com/banger-dev/banger/internal/errs"
	"github.com/banger-dev/banger/internal/hypervisor/hosted"
	"github.com/banger-dev/banger/internal/launch"
	"github.com/banger-dev/banger/internal/paths"
	"github.com/banger-dev/banger/internal/shim"
)

const usage = `bangerd keeps banger's VMs and serves its API; banger starts it when it is needed.

  bangerd                 serve until SIGTERM; VMs run on
    --foreground          log to standard error
    --rebuild             set a damaged database aside and make a new one from the VMs' own records
  bangerd version         what this build is

Exit status: 0 ended when asked, or another bangerd is there already; 1 failed; 2 wrong usage.
`

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	// nothing that banger makes is for others, whatever the caller's umask
	unix.Umask(0o077)
	if len(args) > 0 {
		switch args[0] {
		case "shim":
			return shim.Main()
		case launch.Verb:
			return launch.Main()
		case "hosted":
			return hosted.Main()
		case "version", "--version":
			i := buildinfo.Get()
			fmt.Fprintf(stdout, "bangerd %s %s %s %s/%s api %d\n", i.Version, i.Commit, i.Go, i.OS, i.Arch, i.API)
			return 0
		case "help", "--help", "-h":
			fmt.Fprint(stdout, usage)
			return 0
		}
	}
	set := flag.NewFlagSet("bangerd", flag.ContinueOnError)
	set.SetOutput(stderr)
	set.Usage = func() { fmt.Fprint(stderr, usage) }
	foreground := set.Bool("foreground", false, "")
	rebuild := set.Bool("rebuild", false, "")
	if err := set.Parse(args); err != nil {
		return 2
	}
	if set.NArg() > 0 {
		fmt.Fprintf(stderr, "error: bangerd has no verb %q\n%s", set.Arg(0), usage)
		return 2
	}
	// a daemon that waits most of its life: little memory counts for more
	// than the collector's time
	debug.SetGCPercent(50)
	debug.SetMemoryLimit(96 << 20)
	return report(serve(*foreground, *rebuild), stdout, stderr)
}

func serve(foreground, rebuild bool) error {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	// a terminal that goes away is not this process's business
	signal.Ignore(unix.SIGHUP, unix.SIGPIPE)
	layout, err := paths.FromEnv(os.Geteuid(), os.Getenv)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	// a binary that was replaced while it ran is found by its old name
	self = strings.TrimSuffix(self, " (deleted)")
	life, end := context.WithCancel(context.Background())
	defer end()
	d, err := daemon.Open(life, daemon.Options{
		Layout: layout, Getenv: os.Getenv, Program: self, Foreground: foreground, Rebuild: rebuild,
		Failpoint: os.Getenv(daemon.EnvFailpoint),
	})
	if err != nil {
		return err
	}
	return d.Run(ctx)
}

func report(err error, stdout, stderr io.Writer) int {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, daemon.ErrRunning):
		fmt.Fprintln(stdout, "bangerd: another one has this state directory already")
		return 0
	}
	fmt.Fprintf(stderr, "error: %v\n", err)
	if hint := errs.HintOf(err); hint != "" {
		fmt.Fprintf(stderr, "  %s\n", hint)
	}
	return 1
}
