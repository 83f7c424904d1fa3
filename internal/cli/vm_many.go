package cli

import (
	"context"
	"errors"
	"sync"

	"connectrpc.com/connect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/apiclient"
	"github.com/banger-dev/banger/internal/cli/ui"
	"github.com/banger-dev/banger/internal/errs"
)

// parallel is how many VMs one command works on at once.
const parallel = 8

// resultView is what one VM of a lifecycle verb came to.
type resultView struct {
	Ref    string      `json:"ref" doc:"as it was typed"`
	ID     string      `json:"id,omitempty" doc:"of the VM"`
	Name   string      `json:"name,omitempty" doc:"of the VM"`
	Result string      `json:"result" doc:"what was done (started, stopped, deleted, …), or failed"`
	VM     *vmView     `json:"vm,omitempty" doc:"the VM afterwards"`
	Error  *ui.Failure `json:"error,omitempty" doc:"of result failed"`

	err error
}

// action does a verb to one VM and gives it as it is afterwards; f shows its
// stages.
type action func(ctx context.Context, vm *bangerv1.VM, f *follower) (*bangerv1.VM, error)

// each resolves every reference once, drops repetitions, runs the action on
// all VMs at once and shows each result. What cannot be found does not stop
// the others; the status is the largest of all.
func each(ctx context.Context, a *app, c *apiclient.Client, refs []string, done string, do action) error {
	results := resolve(ctx, c, refs)
	stages := a.ui.Stages()
	defer stages.Close()
	var wg sync.WaitGroup
	slots := make(chan struct{}, parallel)
	for i := range results {
		r := &results[i]
		if r.err != nil {
			continue
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			slots <- struct{}{}
			defer func() { <-slots }()
			f := &follower{a: a, stages: stages}
			if len(results) > 1 {
				f.prefix = r.Name + ": "
			}
			r.finish(do(ctx, &bangerv1.VM{Id: r.ID, Name: r.Name}, f))
		}()
	}
	wg.Wait()
	stages.Close()
	return showResults(a, results, done)
}

// finish records what an action came to.
func (r *resultView) finish(vm *bangerv1.VM, err error) {
	r.err = err
	if vm != nil {
		v := viewVM(vm)
		r.VM = &v
	}
}

// resolve finds each VM once, in the order typed.
func resolve(ctx context.Context, c *apiclient.Client, refs []string) []resultView {
	found := make([]resultView, len(refs))
	var wg sync.WaitGroup
	for i, ref := range refs {
		wg.Add(1)
		go func() {
			defer wg.Done()
			found[i] = resultView{Ref: ref}
			resp, err := c.VMs.Get(ctx, connect.NewRequest(&bangerv1.VMRef{Vm: ref}))
			if err != nil {
				found[i].err = err
				return
			}
			found[i].ID, found[i].Name = resp.Msg.GetId(), resp.Msg.GetName()
		}()
	}
	wg.Wait()
	seen := map[string]bool{}
	out := found[:0]
	for _, r := range found {
		key := "id " + r.ID
		if r.err != nil {
			key = "ref " + r.Ref
		}
		if !seen[key] {
			seen[key] = true
			out = append(out, r)
		}
	}
	return out
}

// showResults shows what every VM came to and gives the worst as the error.
func showResults(a *app, results []resultView, done string) error {
	var worst error
	for i := range results {
		r := &results[i]
		r.Result = done
		if r.err != nil {
			r.Result, r.Error = "failed", ui.FailureOf(r.err)
			if worst == nil || errs.KindOf(r.err).ExitStatus() > errs.KindOf(worst).ExitStatus() {
				worst = r.err
			}
		}
	}
	if a.ui.JSON {
		if err := a.ui.JSONValue(orEmpty(results)); err != nil {
			return err
		}
		if worst != nil {
			return asStatus(worst)
		}
		return nil
	}
	if len(results) == 1 && worst != nil {
		return worst
	}
	for i := range results {
		r := &results[i]
		if r.err != nil {
			a.ui.Error(r.err)
			continue
		}
		if !a.ui.Quiet {
			if err := a.ui.Print("%s %s", r.Name, done); err != nil {
				return err
			}
		}
	}
	if worst != nil {
		return asStatus(worst)
	}
	return nil
}

// asStatus is the exit status of an error that was shown already.
func asStatus(err error) error {
	var st statusError
	if errors.As(err, &st) {
		return st
	}
	return statusError(errs.KindOf(err).ExitStatus())
}

// names gives the VMs a verb is meant for: those typed, or with all every one
// for which want holds.
func names(ctx context.Context, c *apiclient.Client, typed []string, all bool, want func(*bangerv1.VM) bool) ([]string, error) {
	if !all {
		return typed, nil
	}
	resp, err := c.VMs.List(ctx, connect.NewRequest(&bangerv1.ListRequest{All: true}))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, v := range resp.Msg.GetVms() {
		if want(v) {
			out = append(out, v.GetName())
		}
	}
	return out, nil
}

// namesOrAll checks that a verb got names or --all, and not both.
func namesOrAll(path string, typed []string, all bool) error {
	switch {
	case all && len(typed) > 0:
		return usage("--all and names contradict each other").WithHint("%s --all", path)
	case !all && len(typed) == 0:
		return usage("%s needs the name of a VM, or --all", path).WithHint("banger ps lists them")
	}
	return nil
}
