package cli

import (
	"google.golang.org/protobuf/reflect/protoreflect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/errs"
)

var exits = []exitSchema{
	{0, "done"}, {1, "failed"}, {2, "wrong usage"}, {3, "no such thing"}, {4, "conflict, or in use"},
	{5, "this host cannot; banger doctor knows why"}, {6, "timed out"}, {130, "interrupted"},
}

var exitsPassed = []exitSchema{
	{0, "the command's own, up to 123"}, {124, "the command's --timeout passed"}, {125, "banger failed"}, {126, "found and cannot be run"},
	{127, "no such command in the VM"}, {128, "128+n: signal n ended the command"}, {130, "interrupted"}, {255, "ssh: OpenSSH itself failed"},
}

var kindMeans = map[errs.Kind]string{
	errs.Invalid:     "wrong usage or a bad value",
	errs.NotFound:    "no such VM, image, kernel or template",
	errs.Conflict:    "exists already, in use, or in a state that forbids it",
	errs.Busy:        "another operation holds the VM",
	errs.Denied:      "the caller may not",
	errs.Unavailable: "the daemon, a guest or a registry does not answer",
	errs.Unsupported: "this host, driver or build cannot do it",
	errs.Exhausted:   "no disk space, memory or other resource of the host",
	errs.Timeout:     "a limit passed",
	errs.Cancelled:   "the caller gave up",
	errs.Internal:    "a defect of banger's",
}

// services describes the contract from its own descriptor.
func services() []serviceSchema {
	list := bangerv1.File_banger_v1_banger_proto.Services()
	out := make([]serviceSchema, 0, list.Len())
	for i := range list.Len() {
		s := serviceSchema{Name: string(list.Get(i).FullName())}
		methods := list.Get(i).Methods()
		for j := range methods.Len() {
			s.Methods = append(s.Methods, method(methods.Get(j)))
		}
		out = append(out, s)
	}
	return out
}

func method(m protoreflect.MethodDescriptor) methodSchema {
	return methodSchema{Name: string(m.Name()), Input: string(m.Input().Name()), Output: string(m.Output().Name()), ClientStream: m.IsStreamingClient(), ServerStream: m.IsStreamingServer()}
}
