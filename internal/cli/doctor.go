package cli

import (
	"context"
	"fmt"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/cli/ui"
	"github.com/banger-dev/banger/internal/errs"
)

// doctorView is what doctor prints.
type doctorView struct {
	OK       bool        `json:"ok" doc:"whether everything that is needed is there"`
	Problems int         `json:"problems" doc:"checks that failed"`
	Warnings int         `json:"warnings" doc:"checks that would make banger better"`
	Checks   []checkView `json:"checks" doc:"every condition of this host"`
}

// checkView is one condition of the host.
type checkView struct {
	Name    string   `json:"name" doc:"stable name"`
	Status  string   `json:"status" doc:"ok, info, warn or fail"`
	Message string   `json:"message" doc:"what was found"`
	Why     string   `json:"why,omitempty" doc:"why it matters"`
	Fix     []string `json:"fix" doc:"commands that mend it"`
}

func newDoctor(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "doctor",
		Short:   "Say what this host can do, and what would make it better",
		Long:    "Say what this host can do, and what would make it better. The status is 5\nwhere something is missing that VMs need.",
		Example: "banger doctor\nbanger doctor --json | jq -r '.checks[] | select(.status==\"fail\").fix[]'",
		Args:    args(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return runDoctor(cmd.Context(), a)
		},
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	return a.declare(cmd, verb{effect: effectRead, shape: shapeObject, output: doctorView{}})
}

func runDoctor(ctx context.Context, a *app) error {
	v := doctorView{Checks: []checkView{}}
	c, err := a.dial(ctx)
	if err == nil {
		var resp *connect.Response[bangerv1.DoctorResponse]
		if resp, err = c.System.Doctor(ctx, connect.NewRequest(&bangerv1.DoctorRequest{})); err == nil {
			for _, k := range resp.Msg.GetChecks() {
				v.Checks = append(v.Checks, checkView{Name: k.GetName(), Status: k.GetStatus(), Message: k.GetMessage(), Why: k.GetWhy(), Fix: orEmpty(k.GetFix())})
			}
		}
	}
	if errs.Is(err, errs.Cancelled) {
		return err
	}
	if err != nil { // a daemon that cannot start is what doctor is for
		f := ui.FailureOf(err)
		v.Checks = append(v.Checks, checkView{Name: "daemon", Status: "fail", Message: f.Message, Why: "everything but this goes through bangerd", Fix: orEmpty(lines(f.Hint))})
	}
	for _, k := range v.Checks {
		switch k.Status {
		case "fail":
			v.Problems++
		case "warn":
			v.Warnings++
		}
	}
	v.OK = v.Problems == 0
	if err := showDoctor(a, v); err != nil {
		return err
	}
	if !v.OK {
		return statusError(errs.Unsupported.ExitStatus())
	}
	return nil
}

func lines(s string) []string {
	var out []string
	for _, l := range strings.Split(s, "\n") {
		if l = strings.TrimSpace(l); l != "" {
			out = append(out, l)
		}
	}
	return out
}

func showDoctor(a *app, v doctorView) error {
	if a.ui.JSON {
		return a.ui.JSONValue(v)
	}
	w := 10
	for _, k := range v.Checks {
		w = max(w, len(k.Name))
	}
	for _, k := range v.Checks {
		if a.ui.Quiet && (k.Status == "ok" || k.Status == "info") {
			continue
		}
		if err := a.ui.Check(k.Status, k.Name, w, k.Message); err != nil {
			return err
		}
		rest := k.Fix
		if k.Why != "" && k.Status != "ok" {
			rest = append([]string{k.Why}, rest...)
		}
		if k.Status == "ok" && !a.ui.Verbose {
			rest = nil
		}
		for _, f := range rest {
			if err := a.ui.Print("%s→ %s", strings.Repeat(" ", w+8), f); err != nil {
				return err
			}
		}
	}
	if a.ui.Quiet {
		return nil
	}
	return a.ui.Print("%s", verdictOf(v))
}

func verdictOf(v doctorView) string {
	switch {
	case v.Problems > 0 && v.Warnings > 0:
		return fmt.Sprintf("%s, %s.", count(v.Problems, "problem"), count(v.Warnings, "warning"))
	case v.Problems > 0:
		return count(v.Problems, "problem") + "."
	case v.Warnings > 0:
		return "VMs run. " + count(v.Warnings, "warning") + "."
	}
	return "All is well."
}
