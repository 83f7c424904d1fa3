package cli

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/apiclient"
	"github.com/banger-dev/banger/internal/errs"
)

// specFlags say what machine is made; run and create have them in common.
type specFlags struct {
	name, image, kernel string
	cpus                uint32
	memory, disk        size
	network             choice
	bootArgs            []string
	cold                bool
	wait                choice
	waitTimeout         span
	expires             span
	labels              []string
}

func (o *specFlags) add(fs *pflag.FlagSet) {
	o.network, o.wait = choose("user", "none"), choose("agent", "system")
	fs.StringVar(&o.name, "name", "", "call it `NAME` (default: made up)")
	fs.StringVar(&o.image, "image", "", "make it from this `IMAGE` (banger images lists them)")
	fs.StringVar(&o.kernel, "kernel", "", "boot this `KERNEL` (default: the image's)")
	fs.Uint32Var(&o.cpus, "cpus", 0, "virtual CPUs (default: from the host, see banger doctor)")
	fs.Var(&o.memory, "memory", "RAM: 512M, 2G, 1.5GiB (default: from the host)")
	fs.Var(&o.disk, "disk", "size of its disks")
	fs.Var(&o.network, "network", "its network: user reaches the world, none nothing")
	fs.StringArrayVar(&o.bootArgs, "boot-arg", nil, "add `ARG` to the kernel's command line")
	fs.BoolVar(&o.cold, "cold", false, "boot it, even where a template would be quicker")
	fs.Var(&o.wait, "wait", "ready when commands can run (agent) or when systemd has settled (system)")
	fs.Var(&o.waitTimeout, "wait-timeout", "how long to wait for that")
	fs.Var(&o.expires, "expires", "delete it after this long")
	fs.StringArrayVar(&o.labels, "label", nil, "label it `KEY=VALUE`")
	group(fs, "Machine", "name", "image", "kernel", "cpus", "memory", "disk", "network", "boot-arg", "cold", "wait", "wait-timeout", "expires", "label")
}

// request makes the API's request of the flags.
func (o *specFlags) request(fs *pflag.FlagSet) (*bangerv1.CreateRequest, error) {
	labels, err := parseLabels(o.labels)
	if err != nil {
		return nil, err
	}
	if fs.Changed("cpus") && o.cpus == 0 {
		return nil, errs.New(errs.Invalid, "cpus_invalid", "--cpus 0: a machine has at least one").WithHint("leave --cpus away, or: --cpus 1")
	}
	spec := &bangerv1.Spec{Image: o.image, Kernel: o.kernel, Cpus: o.cpus, Memory: int64(o.memory), Disk: int64(o.disk), BootArgs: o.bootArgs}
	if fs.Changed("network") {
		spec.Network = o.network.value
	}
	return &bangerv1.CreateRequest{
		Name: o.name, Spec: spec, Cold: o.cold, Wait: o.wait.value, Labels: labels,
		WaitTimeout: o.waitTimeout.proto(), Expires: o.expires.proto(),
	}, nil
}

// runOptions are those of vm run.
type runOptions struct {
	spec      specFlags
	session   sessionFlags
	rm        bool
	guestPath string
	path      string   // host directory, absolute; "" for none
	argv      []string // empty: a shell
	request   *bangerv1.CreateRequest
}

func newVMRun(a *app) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run [PATH] [-- CMD…]",
		Short: "Make a VM and enter it, or run a command in it",
		Long: `Make a VM and enter it, or run a command in it.

With PATH the directory, a git repository for instance, is copied to /root/repo
and the command or shell starts there. The VM stays when the command or shell
ends, unless --rm is given. The status is the command's.`,
		Example: "banger vm run --rm -- uname -a\nbanger vm run . -- make test\nbanger vm run --name web --memory 2G",
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.parse(a, cmd, args); err != nil {
				return err
			}
			return runVMRun(cmd.Context(), a, o)
		},
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			if len(args) == 0 {
				return nil, cobra.ShellCompDirectiveFilterDirs
			}
			return nil, cobra.ShellCompDirectiveDefault
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&o.rm, "rm", false, "delete the VM when the command or shell ends")
	o.spec.add(fs)
	o.session.add(fs)
	fs.StringVar(&o.guestPath, "guest-path", "", "copy PATH to this `DIR` of the guest (default /root/repo)")
	completeSpec(a, cmd)
	return a.declare(cmd, verb{effect: effectOther, shape: shapeLines, output: runLine{}, passes: true})
}

// parse sorts the arguments and refuses contradictions before anything is made.
func (o *runOptions) parse(a *app, cmd *cobra.Command, args []string) error {
	paths := args
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		paths, o.argv = args[:dash], args[dash:]
		if len(o.argv) == 0 {
			return usage("nothing stands after --").WithHint("banger run -- uname -a, or without -- for a shell")
		}
	}
	if len(paths) > 1 {
		return usage("%q is no directory to copy: one PATH at most", paths[1]).
			WithHint("for a command write -- before it: banger run %s -- %s", paths[0], strings.Join(paths[1:], " "))
	}
	if err := o.session.check(a); err != nil {
		return err
	}
	switch fs := cmd.Flags(); {
	case len(paths) == 0 && o.guestPath != "":
		return usage("--guest-path needs a PATH to copy").WithHint("banger run . --guest-path %s", o.guestPath)
	case len(o.argv) == 0 && o.session.timeout != 0:
		return usage("--timeout needs a command").WithHint("how long banger waits for the VM is --wait-timeout")
	case len(o.argv) > 0 && o.argv[0] == "":
		return usage("the command after -- is empty")
	case o.guestPath != "" && !strings.HasPrefix(o.guestPath, "/"):
		return usage("--guest-path %q is not an absolute path of the guest", o.guestPath).WithHint("for example: --guest-path /root/repo")
	default:
		var err error
		if o.request, err = o.spec.request(fs); err != nil {
			return err
		}
	}
	o.request.Ephemeral = o.rm
	if len(paths) == 0 {
		return nil
	}
	return o.setPath(a, paths[0])
}

// setPath checks the positional, which is always a directory of the host.
func (o *runOptions) setPath(a *app, p string) error {
	abs := p
	if !filepath.IsAbs(abs) {
		abs = filepath.Join(a.p.Dir, p)
	}
	st, err := os.Stat(abs)
	switch {
	case os.IsNotExist(err):
		return errs.New(errs.Invalid, "path_not_found", "no directory %q here", p).
			WithHint("an image is: banger run --image %s\na command is: banger run -- %s", p, p)
	case err != nil:
		return errs.Wrap(err, errs.Invalid, "path_unreadable", "cannot read %q", p)
	case !st.IsDir():
		return errs.New(errs.Invalid, "path_not_directory", "%q is a file, not a directory", p).
			WithHint("banger run %s -- ./%s", filepath.Dir(p), filepath.Base(p))
	}
	if real, err := filepath.EvalSymlinks(abs); err == nil {
		abs = real
	}
	o.path = abs
	return nil
}

// runVMRun makes a VM, copies the workspace, and runs the command or a shell.
func runVMRun(ctx context.Context, a *app, o runOptions) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	f := &follower{a: a, stages: a.ui.Stages(), lines: a.ui.JSON}
	defer f.stages.Close()
	stream, err := c.VMs.Create(ctx, connect.NewRequest(o.request))
	made, err := f.follow(stream, err)
	if err != nil {
		return err
	}
	vm := made.vm
	if vm == nil {
		return incomplete("the VM")
	}
	cmd := command{vm: vm, argv: o.argv, release: o.rm, hint: o.hint(a)}
	if o.path != "" {
		ws, err := prepareWorkspace(ctx, c, f, &bangerv1.PrepareWorkspaceRequest{Vm: vm.GetId(), Path: o.path, GuestPath: o.guestPath})
		if err != nil {
			return abandon(ctx, c, o.rm, vm, err)
		}
		if len(cmd.argv) > 0 {
			cmd.argv = inWorkspace(cmd.argv, a.p.Dir, o.path, ws.GetGuestPath(), isFile)
		}
		if o.session.cwd == "" {
			o.session.cwd = ws.GetGuestPath()
		}
	}
	f.stages.Close()
	if err := ctx.Err(); err != nil {
		return abandon(ctx, c, o.rm, vm, apiclient.Translate(err))
	}
	shell := len(cmd.argv) == 0 && o.session.wantsTTY(a)
	if shell && !o.rm {
		defer a.ui.Note("%s runs on.  back in: banger shell %s · away: banger rm -f %s", vm.GetName(), vm.GetName(), vm.GetName())
	}
	return runSession(ctx, a, c, &o.session, cmd)
}

// abandon is the end of a run whose VM stands and whose command will not run:
// with --rm the VM goes, otherwise it is named.
func abandon(ctx context.Context, c *apiclient.Client, rm bool, vm *bangerv1.VM, cause error) error {
	if rm {
		dctx, cancel := detached(ctx, 10*time.Second)
		defer cancel()
		if _, err := c.VMs.Delete(dctx, connect.NewRequest(&bangerv1.DeleteRequest{Vm: vm.GetId(), Force: true})); err == nil || errs.Is(err, errs.NotFound) {
			return cause
		}
	}
	hint := fmt.Sprintf("%q was made and runs on.  away: banger rm -f %s", vm.GetName(), vm.GetName())
	if h := errs.HintOf(cause); h != "" {
		hint = h + "\n" + hint
	}
	return errs.New(errs.KindOf(cause), errs.CodeOf(cause), "%s", cause.Error()).WithHint("%s", hint)
}

// hint is the next step when there is no such command in the guest: perhaps it
// is a file of this host.
func (o *runOptions) hint(a *app) string {
	if len(o.argv) == 0 || !strings.Contains(o.argv[0], "/") || o.path != "" {
		return ""
	}
	if p := filepath.Join(a.p.Dir, o.argv[0]); !filepath.IsAbs(o.argv[0]) && isFile(p) {
		return fmt.Sprintf("%s is on this host; to take it along: banger run . -- %s", o.argv[0], o.argv[0])
	}
	return ""
}

func isFile(p string) bool {
	st, err := os.Stat(p)
	return err == nil && !st.IsDir()
}

// inWorkspace finds a command that names a file of the host inside the
// workspace: it becomes the same file in the guest. Everything else stays as
// it was typed.
func inWorkspace(argv []string, dir, workspace, guest string, isFile func(string) bool) []string {
	name := argv[0]
	if !strings.Contains(name, "/") {
		return argv
	}
	abs := name
	if !filepath.IsAbs(name) {
		if isFile(filepath.Join(workspace, name)) {
			return argv // the command starts in the workspace and finds it there
		}
		abs = filepath.Join(dir, name)
	}
	rel, err := filepath.Rel(workspace, filepath.Clean(abs))
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") || !isFile(abs) {
		return argv
	}
	out := append([]string(nil), argv...)
	out[0] = filepath.Join(guest, rel)
	return out
}
