package adapter

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/go-logr/logr"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	apiregistrationv1 "k8s.io/kube-aggregator/pkg/apis/apiregistration/v1"
	apiregistrationclient "k8s.io/kube-aggregator/pkg/client/clientset_generated/clientset/typed/apiregistration/v1"
	"k8s.io/metrics/pkg/apis/external_metrics"
)

// externalAPIService is the one that the adapter creates itself, because it is often somebody else's.
const externalAPIService = "v1beta1." + external_metrics.GroupName

// apiServices are those that lead to the adapter, if they are ours. The manifests create them.
var apiServices = []string{"v1beta1.custom.metrics.k8s.io", "v1beta2.custom.metrics.k8s.io"}

// publisher keeps the CA bundle of our APIServices, and creates the one of external.metrics.k8s.io while there is none.
// One that names another Service belongs to somebody else and is never touched.
type publisher struct {
	client  apiregistrationclient.APIServiceInterface
	service types.NamespacedName
	metrics *adapterMetrics
	// external says whether the APIService of external.metrics.k8s.io is to be there.
	external ExternalMetrics
	// answering tells whether this adapter answers by now. An APIService that nobody answers for holds up the deletion
	// of namespaces in the whole cluster, so none is created before.
	answering func() bool
	// was is what each APIService last was found to be, so that a change is logged and not every look.
	was map[string]finding
	// owner is one of apiServices that is ours; nil if there is none.
	owner *apiregistrationv1.APIService
	// status is told what was found.
	status *statusWriter
}

// ownership is whose an APIService is.
type ownership string

const (
	ours    ownership = "ours"
	foreign ownership = "foreign"
	missing ownership = "missing"
)

// finding is what an APIService was found to be.
type finding struct {
	owner ownership
	// words say the same to people, and what follows from it.
	words string
}

// publish makes bundle that of our APIServices.
func (p *publisher) publish(ctx context.Context, bundle []byte) error {
	var errs []error
	p.owner = nil
	for _, name := range append(slices.Clone(apiServices), externalAPIService) {
		found, err := p.publishTo(ctx, name, bundle)
		if err != nil {
			errs = append(errs, fmt.Errorf("APIService %s: %w", name, err))
		}
		if name != externalAPIService && found != nil {
			p.owner = found
		}
	}
	return errors.Join(errs...)
}

// register creates or deletes our APIService of external.metrics.k8s.io, as publish has found it, and tells of all in
// the status.
func (p *publisher) register(ctx context.Context, bundle []byte) error {
	var err error
	switch owner := p.was[externalAPIService].owner; {
	case p.external == ExternalMetricsOff && owner == ours:
		err = p.deleteExternal(ctx)
	case p.external != ExternalMetricsOff && owner == missing && p.owner != nil && p.answering():
		err = p.createExternal(ctx, bundle)
	}
	if err != nil {
		err = fmt.Errorf("APIService %s: %w", externalAPIService, err)
	}
	return errors.Join(err, p.status.write(ctx, p.was))
}

// publishTo returns the APIService if it is ours.
func (p *publisher) publishTo(ctx context.Context, name string, bundle []byte) (*apiregistrationv1.APIService, error) {
	found, err := p.look(ctx, name)
	switch {
	case err != nil || found == nil:
		return nil, err
	case bytes.Equal(found.Spec.CABundle, bundle) && !found.Spec.InsecureSkipTLSVerify:
		return found, nil
	}
	patch, err := p.patch(found, bundle)
	if err != nil {
		return found, err
	}
	if _, err = p.client.Patch(ctx, name, types.JSONPatchType, patch, metav1.PatchOptions{}); err != nil {
		return found, fmt.Errorf("publish CA bundle: %w", err)
	}
	logr.FromContextOrDiscard(ctx).Info("CA bundle published", "apiService", name)
	return found, nil
}

// look returns the APIService if it is ours, and notes whose it is.
func (p *publisher) look(ctx context.Context, name string) (*apiregistrationv1.APIService, error) {
	found, err := p.client.Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		p.found(ctx, name, finding{missing, "missing: " + p.absent(name)})
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	switch s := found.Spec.Service; {
	case s == nil:
		p.found(ctx, name, finding{foreign, "foreign: served by the API server itself; metrics are not served through it"})
		return nil, nil
	case s.Namespace != p.service.Namespace || s.Name != p.service.Name:
		p.found(ctx, name, finding{foreign, fmt.Sprintf(
			"foreign: leads to %s/%s; Sluice's metrics are not served through it", s.Namespace, s.Name)})
		return nil, nil
	}
	p.found(ctx, name, finding{ours, fmt.Sprintf("ours: leads to %s", p.service)})
	return found, nil
}

// absent says in words why there is no APIService of that name. It is the same for all replicas, whether they answer yet
// or not.
func (p *publisher) absent(name string) string {
	switch {
	case name != externalAPIService:
		return "metrics are not served through it; apply Sluice's manifests"
	case p.external == ExternalMetricsOff:
		return "not created, because of --" + flagExternalMetrics + "=" + string(ExternalMetricsOff)
	case p.owner == nil:
		return "not created while no APIService of custom.metrics.k8s.io leads to Sluice"
	default:
		return "created as soon as an adapter answers"
	}
}

// createExternal creates our APIService. Create, not apply: who is first has it, another replica or somebody else's
// installer.
func (p *publisher) createExternal(ctx context.Context, bundle []byte) error {
	_, err := p.client.Create(ctx, p.externalService(bundle), metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return fmt.Errorf("create: %w", err)
	}
	_, err = p.look(ctx, externalAPIService)
	return err
}

// externalService is the APIService. It goes with its owner, the one of custom metrics that the manifests create: one
// that leads to an adapter that was uninstalled would hold up the deletion of namespaces.
func (p *publisher) externalService(bundle []byte) *apiregistrationv1.APIService {
	return &apiregistrationv1.APIService{
		ObjectMeta: metav1.ObjectMeta{
			Name: externalAPIService,
			Labels: map[string]string{
				"app.kubernetes.io/managed-by": Service,
				"app.kubernetes.io/part-of":    "sluice",
			},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: apiregistrationv1.SchemeGroupVersion.String(), Kind: "APIService", Name: p.owner.Name, UID: p.owner.UID,
			}},
		},
		Spec: apiregistrationv1.APIServiceSpec{
			Group: external_metrics.GroupName, Version: "v1beta1", GroupPriorityMinimum: 100, VersionPriority: 100,
			Service:  &apiregistrationv1.ServiceReference{Namespace: p.service.Namespace, Name: p.service.Name},
			CABundle: bundle,
		},
	}
}

// deleteExternal deletes ours.
func (p *publisher) deleteExternal(ctx context.Context) error {
	found, err := p.look(ctx, externalAPIService)
	if err != nil || found == nil {
		return err
	}
	// Not what somebody else has made of it, or put in its place, since it was read.
	err = p.client.Delete(ctx, externalAPIService, metav1.DeleteOptions{Preconditions: &metav1.Preconditions{
		UID: &found.UID, ResourceVersion: &found.ResourceVersion,
	}})
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("delete: %w", err)
	}
	_, err = p.look(ctx, externalAPIService)
	return err
}

// patch sets the bundle, and nothing if the APIService has become somebody else's since it was read: the tests make
// the API server refuse it then.
func (p *publisher) patch(apiService *apiregistrationv1.APIService, bundle []byte) ([]byte, error) {
	type operation struct {
		Op    string `json:"op"`
		Path  string `json:"path"`
		Value any    `json:"value,omitempty"`
	}
	operations := []operation{
		{"test", "/spec/service/namespace", p.service.Namespace},
		{"test", "/spec/service/name", p.service.Name},
		{"add", "/spec/caBundle", bundle},
	}
	if apiService.Spec.InsecureSkipTLSVerify { // a bundle beside it is refused
		operations = append(operations, operation{Op: "remove", Path: "/spec/insecureSkipTLSVerify"})
	}
	return json.Marshal(operations)
}

// found notes whose the APIService is.
func (p *publisher) found(ctx context.Context, name string, now finding) {
	if p.was[name] == now {
		return
	}
	p.was[name] = now
	for _, o := range []ownership{ours, foreign, missing} {
		value := 0.0
		if o == now.owner {
			value = 1
		}
		p.metrics.apiService.WithLabelValues(name, string(o)).Set(value)
	}
	logr.FromContextOrDiscard(ctx).Info("APIService found", "apiService", name, "state", now.words)
}
