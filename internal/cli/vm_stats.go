package cli

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/apiclient"
	"github.com/banger-dev/banger/internal/cli/ui"
)

// statsOptions are those of vm stats.
type statsOptions struct {
	names    []string
	follow   bool
	interval span
}

// statsView is one measurement of one VM.
type statsView struct {
	ID            string  `json:"id" doc:"of the VM"`
	Name          string  `json:"name" doc:"of the VM"`
	At            string  `json:"at,omitempty" doc:"RFC 3339, UTC"`
	CPUPercent    float64 `json:"cpu_percent" doc:"of one core"`
	CPUMS         int64   `json:"cpu_ms" doc:"milliseconds of CPU since its start"`
	HostMemory    int64   `json:"host_memory" doc:"bytes of the host's memory that are its own"`
	MemoryTotal   int64   `json:"memory_total" doc:"bytes, as the guest says"`
	MemoryAvail   int64   `json:"memory_available" doc:"bytes, as the guest says"`
	DiskUsed      int64   `json:"disk_used" doc:"bytes of the host's disk"`
	WorkDiskUsed  int64   `json:"work_disk_used" doc:"bytes, as the guest says"`
	WorkDiskTotal int64   `json:"work_disk_total" doc:"bytes, as the guest says"`
	NetRX         int64   `json:"net_rx" doc:"bytes received"`
	NetTX         int64   `json:"net_tx" doc:"bytes sent"`
	Processes     uint32  `json:"processes" doc:"as the guest says"`
	Load1         float64 `json:"load1" doc:"load of the last minute, as the guest says"`
	Error         string  `json:"error,omitempty" doc:"why the guest said nothing"`
}

func newVMStats(a *app) *cobra.Command {
	var o statsOptions
	cmd := &cobra.Command{
		Use:     "stats [NAME…]",
		Short:   "Show what VMs use",
		Example: "banger vm stats\nbanger vm stats web -f --json",
		RunE: func(cmd *cobra.Command, args []string) error {
			o.names = args
			return runVMStats(cmd.Context(), a, o)
		},
		ValidArgsFunction: manyVMs(a, "running", "paused"),
	}
	cmd.Flags().BoolVarP(&o.follow, "follow", "f", false, "again and again")
	cmd.Flags().Var(&o.interval, "interval", "time between two (default 2s)")
	return a.declare(cmd, verb{effect: effectRead, shape: shapeLines, output: statsView{}})
}

func runVMStats(ctx context.Context, a *app, o statsOptions) error {
	c, err := a.dial(ctx)
	if err != nil {
		return err
	}
	stream, err := c.VMs.Stats(ctx, connect.NewRequest(&bangerv1.StatsRequest{Vms: o.names, Follow: o.follow, Interval: o.interval.proto()}))
	if err != nil {
		return apiclient.Translate(err)
	}
	defer func() { _ = stream.Close() }()
	for stream.Receive() {
		if err := showStats(a, stream.Msg().GetStats()); err != nil {
			return err
		}
	}
	return ended(ctx, o.follow, stream.Err())
}

func showStats(a *app, list []*bangerv1.VMStats) error {
	rows := make([][]string, 0, len(list))
	for _, s := range list {
		if a.ui.JSON {
			if err := a.ui.JSONLine(viewStats(s)); err != nil {
				return err
			}
			continue
		}
		rows = append(rows, []string{
			s.GetName(), fmt.Sprintf("%.0f%%", s.GetCpuPercent()), ui.Bytes(s.GetHostMemory()),
			share(s.GetMemoryTotal()-s.GetMemoryAvailable(), s.GetMemoryTotal()), share(s.GetWorkDiskUsed(), s.GetWorkDiskTotal()), ui.Bytes(s.GetDiskUsed()),
			ui.Bytes(s.GetNetRx()) + "/" + ui.Bytes(s.GetNetTx()), fmt.Sprint(s.GetProcesses()), fmt.Sprintf("%.2f", s.GetLoad1()), strings.TrimSpace(s.GetError()),
		})
	}
	if a.ui.JSON {
		return nil
	}
	return a.ui.Table([]ui.Column{{Title: "NAME"}, {Title: "CPU", Align: ui.Right}, {Title: "HOST RAM", Align: ui.Right}, {Title: "GUEST RAM"},
		{Title: "WORK DISK"}, {Title: "HOST DISK", Align: ui.Right}, {Title: "NET IN/OUT"}, {Title: "PROCS", Align: ui.Right}, {Title: "LOAD", Align: ui.Right}, {Title: "NOTE"}}, rows)
}

func share(used, total int64) string {
	if total <= 0 {
		return "-"
	}
	return ui.Bytes(max(used, 0)) + "/" + ui.Bytes(total)
}

func viewStats(s *bangerv1.VMStats) statsView {
	return statsView{
		ID: s.GetVm(), Name: s.GetName(), At: stamp(s.GetAt()), CPUPercent: s.GetCpuPercent(), CPUMS: s.GetCpuMs(), HostMemory: s.GetHostMemory(),
		MemoryTotal: s.GetMemoryTotal(), MemoryAvail: s.GetMemoryAvailable(), DiskUsed: s.GetDiskUsed(), WorkDiskUsed: s.GetWorkDiskUsed(),
		WorkDiskTotal: s.GetWorkDiskTotal(), NetRX: s.GetNetRx(), NetTX: s.GetNetTx(), Processes: s.GetProcesses(), Load1: s.GetLoad1(), Error: s.GetError(),
	}
}
