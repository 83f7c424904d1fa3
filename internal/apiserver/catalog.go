package apiserver

import (
	"context"
	"slices"

	"connectrpc.com/connect"

	bangerv1 "github.com/banger-dev/banger/internal/api/banger/v1"
	"github.com/banger-dev/banger/internal/api/banger/v1/bangerv1connect"
	"github.com/banger-dev/banger/internal/op"
)

type imageService struct {
	bangerv1connect.UnimplementedImageServiceHandler
	s *Server
}

// List gives the images that are here and, with All, those that could be.
func (i *imageService) List(_ context.Context, req *connect.Request[bangerv1.ListImagesRequest]) (*connect.Response[bangerv1.ListImagesResponse], error) {
	images, err := i.s.rooms.Images.List()
	if err != nil {
		return nil, err
	}
	resp := &bangerv1.ListImagesResponse{}
	var here []string
	for _, img := range images {
		here = append(here, img.Names...)
		resp.Images = append(resp.Images, toImage(img, false))
	}
	if req.Msg.GetAll() {
		for _, name := range i.s.rooms.Images.Catalog() {
			if !slices.Contains(here, name) {
				resp.Images = append(resp.Images, &bangerv1.Image{Name: name, Names: []string{name}})
			}
		}
	}
	return connect.NewResponse(resp), nil
}

// Get gives one image with its packages.
func (i *imageService) Get(_ context.Context, req *connect.Request[bangerv1.GetImageRequest]) (*connect.Response[bangerv1.Image], error) {
	img, err := i.s.rooms.Images.Get(req.Msg.GetImage())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(toImage(img, true)), nil
}

// Pull makes or fetches an image; one that is here is made again with Force.
func (i *imageService) Pull(ctx context.Context, req *connect.Request[bangerv1.PullImageRequest], stream *opStream) error {
	return withProgress(ctx, stream, func(ctx context.Context, r op.Reporter) (*bangerv1.OpEvent, error) {
		img, err := i.s.rooms.Images.Pull(ctx, req.Msg.GetImage(), req.Msg.GetForce(), r)
		if err != nil {
			return nil, err
		}
		return &bangerv1.OpEvent{Event: &bangerv1.OpEvent_Image{Image: toImage(img, false)}}, nil
	})
}

type kernelService struct {
	bangerv1connect.UnimplementedKernelServiceHandler
	s *Server
}

// List gives the kernels that are here and those that could be.
func (k *kernelService) List(context.Context, *connect.Request[bangerv1.ListKernelsRequest]) (*connect.Response[bangerv1.ListKernelsResponse], error) {
	kernels, err := k.s.rooms.Kernels.List()
	if err != nil {
		return nil, err
	}
	resp := &bangerv1.ListKernelsResponse{}
	var here []string
	for _, kern := range kernels {
		here = append(here, kern.Names...)
		resp.Kernels = append(resp.Kernels, toKernel(kern))
	}
	for _, name := range k.s.rooms.Kernels.Catalog() {
		if !slices.Contains(here, name) {
			resp.Kernels = append(resp.Kernels, &bangerv1.Kernel{Name: name})
		}
	}
	return connect.NewResponse(resp), nil
}

// Get gives one kernel.
func (k *kernelService) Get(_ context.Context, req *connect.Request[bangerv1.GetKernelRequest]) (*connect.Response[bangerv1.Kernel], error) {
	kern, err := k.s.rooms.Kernels.Get(req.Msg.GetKernel())
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(toKernel(kern)), nil
}

// Pull fetches a kernel; one that is here is fetched again with Force.
func (k *kernelService) Pull(ctx context.Context, req *connect.Request[bangerv1.PullKernelRequest], stream *opStream) error {
	return withProgress(ctx, stream, func(ctx context.Context, r op.Reporter) (*bangerv1.OpEvent, error) {
		kern, err := k.s.rooms.Kernels.Pull(ctx, req.Msg.GetKernel(), req.Msg.GetForce(), r)
		if err != nil {
			return nil, err
		}
		return &bangerv1.OpEvent{Event: &bangerv1.OpEvent_Kernel{Kernel: toKernel(kern)}}, nil
	})
}

type templateService struct {
	bangerv1connect.UnimplementedTemplateServiceHandler
	s *Server
}

type workspaceService struct {
	bangerv1connect.UnimplementedWorkspaceServiceHandler
	s *Server
}
