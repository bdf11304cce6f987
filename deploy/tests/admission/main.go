// What Kubernetes itself says to pods: its admission plugin for ValidatingAdmissionPolicy, as an API server has it, with a policy and its
// binding from the file that the first argument names. Pods come on stdin, one a line in JSON; for each a line goes to stdout, empty
// when the pod is let in. `cargo xtask admission` builds and runs it.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizerfactory"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/restmapper"
)

// The namespace of the agent, and one that the policy has nothing to say about.
var namespaces = []string{"siskin", "shop"}

func main() {
	if err := run(os.Args[1]); err != nil {
		log.Fatal(err)
	}
}

func run(file string) error {
	objects, err := read(file)
	if err != nil {
		return err
	}
	for _, name := range namespaces {
		labels := map[string]string{"kubernetes.io/metadata.name": name}
		objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}})
	}
	plugin, err := plugin(objects)
	if err != nil {
		return err
	}
	interfaces := admission.NewObjectInterfacesFromScheme(scheme.Scheme)
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		object, _, err := scheme.Codecs.UniversalDeserializer().Decode(lines.Bytes(), nil, nil)
		if err != nil {
			return err
		}
		if err := plugin.Validate(context.Background(), attributes(object.(*corev1.Pod)), interfaces); err != nil {
			fmt.Println(strings.ReplaceAll(err.Error(), "\n", " "))
		} else {
			fmt.Println()
		}
	}
	return lines.Err()
}

// read returns the objects of a file, with what an API server sets where a policy says nothing.
func read(file string) ([]runtime.Object, error) {
	text, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer text.Close()
	equivalent, every, scope := admissionv1.Equivalent, &metav1.LabelSelector{}, admissionv1.AllScopes
	complete := func(match *admissionv1.MatchResources) {
		if match.MatchPolicy == nil {
			match.MatchPolicy = &equivalent
		}
		if match.NamespaceSelector == nil {
			match.NamespaceSelector = every
		}
		if match.ObjectSelector == nil {
			match.ObjectSelector = every
		}
		for i := range match.ResourceRules {
			if match.ResourceRules[i].Scope == nil {
				match.ResourceRules[i].Scope = &scope
			}
		}
	}
	var objects []runtime.Object
	for documents := yaml.NewYAMLReader(bufio.NewReader(text)); ; {
		document, err := documents.Read()
		if errors.Is(err, io.EOF) {
			return objects, nil
		} else if err != nil {
			return nil, err
		}
		object, kind, err := scheme.Codecs.UniversalDeserializer().Decode(document, nil, nil)
		if runtime.IsMissingKind(err) {
			continue // Comments alone.
		} else if err != nil {
			return nil, err
		}
		switch object := object.(type) {
		case *admissionv1.ValidatingAdmissionPolicy:
			complete(object.Spec.MatchConstraints)
		case *admissionv1.ValidatingAdmissionPolicyBinding:
			complete(object.Spec.MatchResources)
		default:
			return nil, fmt.Errorf("%s: an unexpected %s", file, kind.Kind)
		}
		objects = append(objects, object)
	}
}

// plugin starts the plugin on a cluster that has these objects.
func plugin(objects []runtime.Object) (*validating.Plugin, error) {
	client := fake.NewClientset(objects...)
	factory := informers.NewSharedInformerFactory(client, 0)
	plugin, err := validating.NewPlugin(nil)
	if err != nil {
		return nil, err
	}
	forever := make(chan struct{})
	plugin.SetExternalKubeClientSet(client)
	plugin.SetExternalKubeInformerFactory(factory)
	plugin.SetDynamicClient(dynamicfake.NewSimpleDynamicClient(scheme.Scheme))
	plugin.SetRESTMapper(restmapper.NewDiscoveryRESTMapper(nil))
	plugin.SetAuthorizer(authorizerfactory.NewAlwaysAllowAuthorizer())
	plugin.SetDrainedNotification(forever)
	if err := plugin.ValidateInitialization(); err != nil {
		return nil, err
	}
	factory.Start(forever)
	factory.WaitForCacheSync(forever)
	if !plugin.WaitForReady() {
		return nil, errors.New("the plugin does not become ready")
	}
	return plugin, nil
}

// attributes makes a pod the object of a request: of its creation, or of the debugger's when it has containers that only a debugger adds.
func attributes(pod *corev1.Pod) admission.Attributes {
	subresource, operation, old := "", admission.Create, runtime.Object(nil)
	if len(pod.Spec.EphemeralContainers) > 0 {
		subresource, operation, old = "ephemeralcontainers", admission.Update, &corev1.Pod{}
	}
	kind, resource := corev1.SchemeGroupVersion.WithKind("Pod"), corev1.SchemeGroupVersion.WithResource("pods")
	return admission.NewAttributesRecord(pod, old, kind, pod.Namespace, pod.Name, resource, subresource, operation,
		&metav1.CreateOptions{}, false, &user.DefaultInfo{Name: "somebody"})
}
