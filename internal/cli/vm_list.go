package cli

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/cli/ui"
)

// listOptions are those of vm list.
type listOptions struct {
	all    bool
	labels []string
}

func newVMList(a *app, use string) *cobra.Command {
	var o listOptions
	cmd := &cobra.Command{
		Use:     use,
		Short:   "List VMs, the newest last",
		Example: "banger ps -a\nbanger ps --json | jq -r '.[].name'\nbanger ps -q --label team=web",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runVMList(cmd.Context(), a, o)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	if use == "list" {
		cmd.Aliases = []string{"ls"}
	}
	cmd.Flags().BoolVarP(&o.all, "all", "a", false, "stopped ones as well")
	cmd.Flags().StringArrayVar(&o.labels, "label", nil, "only those labelled `KEY=VALUE`")
	return a.declare(cmd, verb{effect: effectRead, shape: shapeArray, output: vmView{}})
}

func runVMList(ctx context.Context, a *app, o listOptions) error {
	labels, err := parseLabels(o.labels)
	if err != nil {
		return err
	}
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	resp, err := c.VMs.List(ctx, connect.NewRequest(&bangerv1.ListRequest{All: o.all, Labels: labels}))
	if err != nil {
		return err
	}
	vms := resp.Msg.GetVms()
	sort.SliceStable(vms, func(i, j int) bool { return vms[i].GetCreated().AsTime().Before(vms[j].GetCreated().AsTime()) })
	return showVMs(a, vms, o.all)
}

func showVMs(a *app, vms []*bangerv1.VM, all bool) error {
	switch {
	case a.ui.JSON:
		views := make([]vmView, len(vms))
		for i, v := range vms {
			views[i] = viewVM(v)
		}
		return a.ui.JSONValue(views)
	case a.ui.Quiet:
		for _, v := range vms {
			if err := a.ui.Print("%s", v.GetName()); err != nil {
				return err
			}
		}
		return nil
	}
	if len(vms) == 0 && a.ui.OutTTY() {
		what := "no VM runs"
		if all {
			what = "no VMs"
		}
		a.ui.Note("%s.  make one: banger run", what)
		return nil
	}
	rows := make([][]string, len(vms))
	for i, v := range vms {
		rows[i] = vmRow(v)
	}
	return a.ui.Table([]ui.Column{{Title: "NAME"}, {Title: "STATE"}, {Title: "IMAGE"}, {Title: "CPU", Align: ui.Right},
		{Title: "MEMORY"}, {Title: "DISK"}, {Title: "UP"}, {Title: "NOTE"}}, rows)
}

func vmRow(v *bangerv1.VM) []string {
	up := ""
	if d, ok := since(v.GetStarted()); ok {
		up = ui.Age(d)
	}
	return []string{
		v.GetName(), stateName(v.GetState()), v.GetSpec().GetImage(), fmt.Sprint(v.GetSpec().GetCpus()),
		ui.Bytes(v.GetMemoryUsed()) + "/" + ui.Bytes(v.GetSpec().GetMemory()), ui.Bytes(v.GetDiskUsed()), up, vmNote(v),
	}
}

// vmNote is what else is worth knowing at a glance.
func vmNote(v *bangerv1.VM) string {
	var n []string
	if v.GetOperation() != "" {
		n = append(n, v.GetOperation())
	}
	switch v.GetState() {
	case bangerv1.State_STATE_BROKEN, bangerv1.State_STATE_STOPPED:
		if v.GetReason() != "" {
			n = append(n, v.GetReason())
		}
	}
	if stamp(v.GetExpires()) != "" {
		n = append(n, "expires in "+ui.Age(time.Until(v.GetExpires().AsTime())))
	}
	return strings.Join(n, "; ")
}

func newVMShow(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "show NAME…",
		Short:   "Show everything of a VM",
		Example: "banger vm show web\nbanger vm show web --json | jq .memory_used",
		Args:    args(1, -1, "the name of a VM"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return runVMShow(cmd.Context(), a, args)
		},
		ValidArgsFunction: manyVMs(a),
	}
	return a.declare(cmd, verb{effect: effectRead, shape: shapeObject, output: vmView{}})
}

func runVMShow(ctx context.Context, a *app, names []string) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	views := make([]vmView, 0, len(names))
	for i, n := range names {
		resp, err := c.VMs.Get(ctx, connect.NewRequest(&bangerv1.VMRef{Vm: n}))
		if err != nil {
			return err
		}
		views = append(views, viewVM(resp.Msg))
		if a.ui.JSON {
			continue
		}
		if i > 0 {
			if err := a.ui.Print(""); err != nil {
				return err
			}
		}
		if err := a.ui.Fields(vmFields(resp.Msg)); err != nil {
			return err
		}
	}
	switch {
	case !a.ui.JSON:
		return nil
	case len(views) == 1:
		return a.ui.JSONValue(views[0])
	}
	return a.ui.JSONValue(views)
}

func vmFields(v *bangerv1.VM) [][2]string {
	s := v.GetSpec()
	origin := func(k string) string {
		if o := s.GetOrigin()[k]; o != "" {
			return " (from " + o + ")"
		}
		return ""
	}
	started := ""
	if d, ok := since(v.GetStarted()); ok {
		started = ui.Age(d) + " ago"
		if v.GetStartKind() != "" {
			started += ", " + v.GetStartKind()
		}
	}
	created := ""
	if d, ok := since(v.GetCreated()); ok {
		created = ui.Age(d) + " ago"
	}
	expires := ""
	if stamp(v.GetExpires()) != "" {
		expires = "in " + ui.Age(time.Until(v.GetExpires().AsTime()))
	}
	state := stateName(v.GetState())
	if v.GetReason() != "" {
		state += ": " + v.GetReason()
	}
	hv := strings.Trim(v.GetHypervisor()+" with "+v.GetAccelerator(), " ")
	if v.GetHypervisor() == "" {
		hv = ""
	}
	pid := ""
	if v.GetPid() != 0 {
		pid = fmt.Sprint(v.GetPid())
	}
	return [][2]string{
		{"name", v.GetName()}, {"id", v.GetId()}, {"state", state}, {"operation", v.GetOperation()},
		{"image", s.GetImage()}, {"kernel", s.GetKernel()},
		{"cpus", fmt.Sprint(s.GetCpus()) + origin("cpus")}, {"memory", ui.Bytes(s.GetMemory()) + origin("memory") + ", " + ui.Bytes(v.GetMemoryUsed()) + " used"},
		{"disk", ui.Bytes(s.GetDisk()) + origin("disk") + ", " + ui.Bytes(v.GetDiskUsed()) + " used"}, {"network", s.GetNetwork()}, {"address", v.GetAddress()},
		{"created", created}, {"started", started}, {"expires", expires}, {"hypervisor", hv}, {"pid", pid},
		{"guest", v.GetGuestState()}, {"workspace", v.GetWorkspace()}, {"labels", labelText(v.GetLabels())}, {"boot args", strings.Join(s.GetBootArgs(), " ")}, {"directory", v.GetDir()},
	}
}

func labelText(m map[string]string) string {
	l := make([]string, 0, len(m))
	for k, v := range m {
		l = append(l, k+"="+v)
	}
	sort.Strings(l)
	return strings.Join(l, " ")
}

func count[N int | uint64](n N, what string) string {
	if n == 1 {
		return fmt.Sprintf("1 %s", what)
	}
	return fmt.Sprintf("%d %ss", n, what)
}

func uiBytes(n uint64) string { return ui.Bytes(int64(min(n, 1<<62))) }
