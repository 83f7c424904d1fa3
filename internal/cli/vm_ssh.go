package cli

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/errs"
)

// sshOptions are those of vm ssh.
type sshOptions struct {
	vm   string
	argv []string
}

func newVMSSH(a *app) *cobra.Command {
	var o sshOptions
	cmd := &cobra.Command{
		Use:   "ssh NAME [-- CMD…]",
		Short: "Enter a VM with OpenSSH",
		Long: `Enter a VM with OpenSSH, for what needs ssh itself; exec and shell are quicker.

One argument after -- is a line for the remote shell, as with ssh; several are
one command whose arguments arrive exactly as typed. The status is ssh's: 255
where ssh itself failed.`,
		Example: "banger ssh web\nbanger ssh web -- 'uname -a | wc -c'",
		Args:    args(1, -1, "the name of a VM"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.ArgsLenAtDash() == 0 {
				return usage("%s needs the name of a VM before --", cmd.CommandPath()).WithHint("banger ps lists them")
			}
			o.vm, o.argv = args[0], args[1:]
			if len(o.argv) > 0 && o.argv[0] == "--" {
				o.argv = o.argv[1:]
			}
			return runVMSSH(cmd.Context(), a, o)
		},
		ValidArgsFunction: firstVM(a, "running"),
	}
	cmd.Flags().SetInterspersed(false)
	return a.declare(cmd, verb{effect: effectOther, shape: shapeRaw, passes: true})
}

func runVMSSH(ctx context.Context, a *app, o sshOptions) error {
	path, err := exec.LookPath("ssh")
	if err != nil {
		return errs.New(errs.Unsupported, "ssh_not_installed", "no ssh program on this host").WithHint("apt-get install openssh-client, or without it: banger shell %s", o.vm)
	}
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	resp, err := c.VMs.SSH(ctx, connect.NewRequest(&bangerv1.VMRef{Vm: o.vm}))
	if err != nil {
		return err
	}
	argv := sshArgv(resp.Msg, a.p.Self, a.ui.JSON || a.ui.Quiet, o.argv)
	a.ui.Detail("%s", strings.Join(argv, " "))
	a.close()
	// banger becomes ssh: its terminal, signals and status are ssh's own
	err = syscall.Exec(path, argv, os.Environ())
	return errs.Wrap(err, errs.Internal, "ssh_exec", "cannot run %s", path)
}

// sshArgv is the command line of OpenSSH. The user's own configuration is left
// out: a proxy or key of another host's must not get in the way.
func sshArgv(s *bangerv1.SSHResponse, self string, quiet bool, argv []string) []string {
	out := []string{"ssh", "-F", "none"}
	opt := func(k, v string) { out = append(out, "-o", k+"="+v) }
	opt("ProxyCommand", proxyCommand(self, s.GetVm()))
	opt("IdentityFile", sshValue(s.GetKeyPath()))
	opt("IdentitiesOnly", "yes")
	opt("UserKnownHostsFile", sshValue(s.GetKnownHosts()))
	opt("GlobalKnownHostsFile", "none")
	opt("StrictHostKeyChecking", "yes")
	if s.GetHostKeyAlias() != "" {
		opt("HostKeyAlias", s.GetHostKeyAlias())
	}
	for _, o := range s.GetOptions() {
		out = append(out, "-o", o)
	}
	if quiet {
		opt("LogLevel", "ERROR")
	}
	user := s.GetUser()
	if user == "" {
		user = "root"
	}
	out = append(out, "-l", user, "--", s.GetName())
	switch len(argv) {
	case 0:
	case 1:
		out = append(out, argv[0])
	default:
		quoted := make([]string, len(argv))
		for i, w := range argv {
			quoted[i] = shellQuote(w)
		}
		out = append(out, strings.Join(quoted, " "))
	}
	return out
}

// proxyCommand is run by the user's shell after ssh has replaced its tokens.
func proxyCommand(self, vm string) string {
	return strings.ReplaceAll(shellQuote(self)+" ssh-proxy "+shellQuote(vm), "%", "%%")
}

// sshValue quotes a path for one of ssh's options, which take several.
func sshValue(p string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "%", "%%").Replace(p) + `"`
}

// shellQuote makes one word of a shell's command line.
func shellQuote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:=@+,") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

func newSSHProxy(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "ssh-proxy VM",
		Short:   "Join standard input and output to a VM's ssh server",
		Long:    "Join standard input and output to a VM's ssh server: what ssh's ProxyCommand runs.",
		Example: "ssh -o ProxyCommand='banger ssh-proxy web' root@web\nsftp -o ProxyCommand='banger ssh-proxy web' root@web",
		Hidden:  true,
		Args:    args(1, 1, "the name of a VM"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runSSHProxy(cmd.Context(), a, args[0])
		},
		ValidArgsFunction: firstVM(a, "running"),
	}
	return a.declare(cmd, verb{effect: effectOther, shape: shapeRaw})
}

func runSSHProxy(ctx context.Context, a *app, vm string) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	in, err := newInput(a.p.In)
	if err != nil {
		return err
	}
	if err := c.Dial(ctx, vm, "agent", "ssh", in, a.ui.Out()); err != nil {
		return fmt.Errorf("ssh of %s: %w", vm, err)
	}
	return nil
}
